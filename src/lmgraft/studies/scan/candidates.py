"""LLM x layer x position, checked by headers alone before anything is computed."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from lmgraft.block import BlockConfig, inspect_llm
from lmgraft.contracts import GraftPoint, Host
from lmgraft.errors import LmgraftError, RecipeError
from lmgraft.graft.hosts import locate
from lmgraft.studies.scan.config import ScanConfig, choose_layers, parse_position


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One block in one place."""

    label: str
    """Its name in files and folders."""
    llm: str
    """Source, as given."""
    layer: int
    """From 0."""
    num_layers: int
    """Layers of the LLM."""
    position: str
    """graft.at, as text."""

    def overrides(self) -> list[str]:
        """What makes the recipe this candidate's."""
        at = parse_position(self.position)
        return ["--arm", "llm", f"--graft.llm={self.llm}", f"--graft.layer={self.layer}", f"--graft.at={at}"]

    @property
    def title(self) -> str:
        """As tables and sentences name it."""
        return f"{short_name(self.llm)} layer {self.layer}, {self.position}"


@dataclass(frozen=True, kw_only=True)
class Anatomy:
    """What the header of an LLM says of one layer."""

    config: BlockConfig
    bytes_to_fetch: int


def short_name(llm: str) -> str:
    """A source without its folders and ending."""
    name = Path(llm.rstrip("/")).name
    return re.sub(r"\.(gguf|safetensors|bin|pth?)$", "", name) or llm


def find_candidates(config: ScanConfig, revision: str | None) -> tuple[list[Candidate], dict[str, Anatomy]]:
    """All candidates, and for each LLM its anatomy.

    Raises:
        LmgraftError: If an LLM cannot be read, naming it, or a layer does not exist.
    """
    found: list[Candidate] = []
    anatomy: dict[str, Anatomy] = {}
    names: dict[str, str] = {}
    for llm in dict.fromkeys(config.llms):
        try:
            report = inspect_llm(llm, revision=revision)
        except LmgraftError as error:
            raise type(error)(f"--llms {llm}: {error.message}", error.remedy or "leave it out") from None
        anatomy[llm] = Anatomy(config=report.config, bytes_to_fetch=report.bytes_to_fetch)
        names[llm] = _unique(re.sub(r"[^\w.-]+", "_", short_name(llm)), set(names.values()))
        found += [
            Candidate(
                label=f"{names[llm]}_layer{layer}_{re.sub(r'[^0-9A-Za-z.-]+', '_', position)}",
                llm=llm,
                layer=layer,
                num_layers=report.num_layers,
                position=position,
            )
            for layer in choose_layers(config.layers, report.num_layers, llm)
            for position in dict.fromkeys(config.positions)
        ]
    return found, anatomy


def _unique(name: str, taken: set[str]) -> str:
    number, made = 2, name
    while made in taken:
        made, number = f"{name}-{number}", number + 1
    return made


def find_places(encoder: nn.Module, positions: tuple[str, ...]) -> dict[str, tuple[Host, GraftPoint]]:
    """Where each position lies in the encoder.

    Raises:
        RecipeError: If two positions are the same place, whose candidates would be the same twice.
        HostError: If there is no such place.
    """
    places: dict[str, tuple[Host, GraftPoint]] = {}
    for position in dict.fromkeys(positions):
        host, point = locate(encoder, parse_position(position), None)
        for other, (_, taken) in places.items():
            if (taken.module, taken.when) == (point.module, point.when):
                raise RecipeError(
                    f"--positions {other} and {position} are the same place, {point.module}", "leave one out"
                )
        places[position] = host, point
    return places
