"""A trained model as a program that needs no lmgraft: torch.export's and ONNX, folds baked in.

    trace.py      a frozen copy of the model, traced; what the program never uses is left out of it
    compare.py    inputs to try, and how far two computations lie apart
    write.py      files that are whole or absent, each tried before it gets its name
    onnx_file.py  all that needs onnx, onnxscript and onnxruntime, imported when called

Knows grafted models; no host, no recipe and no command.
"""

from lmgraft.graft.export.compare import TOLERANCE, Check
from lmgraft.graft.export.trace import export_program
from lmgraft.graft.export.write import ExportReport, export_onnx, export_torch

__all__ = ["TOLERANCE", "Check", "ExportReport", "export_onnx", "export_program", "export_torch"]
