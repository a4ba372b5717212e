"""What the block does to tokens, measured on finished runs: which tokens stand out, and whether they are needed.

Reads runs and their test items; trains nothing. The measures themselves are functions of `lmgraft.analysis`.
"""

from typing import TYPE_CHECKING

from lmgraft.registry import lazily
from lmgraft.studies.analyze.config import AnalyzeConfig

if TYPE_CHECKING:
    from lmgraft.studies.analyze.results import Analysis, read_analysis
    from lmgraft.studies.analyze.run import analyze_runs

__all__ = ["Analysis", "AnalyzeConfig", "analyze_runs", "read_analysis"]

_RESULTS = ("Analysis", "read_analysis")
__getattr__ = lazily(
    __name__, dict.fromkeys(__all__, f"{__name__}.run") | dict.fromkeys(_RESULTS, f"{__name__}.results")
)
