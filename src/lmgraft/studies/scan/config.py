"""What a scan is asked: which LLMs, layers and positions, by which scores, with how much effort."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lmgraft.errors import RecipeError

ALL, EVERY = "all", "every:"
_AT_LEAST = {
    "draws": 2,
    "train_images": 20,
    "val_images": 20,
    "cka_images": 4,
    "coherence_batches": 3,
    "coherence_images": 1,
    "train_epochs": 0,
    "train_seeds": 2,
}
_OF_THE_SCAN = {
    "--llm": "--llms",
    "--graft.llm": "--llms",
    "--layer": "--layers",
    "--graft.layer": "--layers",
    "--graft.at": "--positions",
    "--arm": "no arm: a scan compares frozen LLM blocks with the plain encoder",
}


@dataclass(frozen=True, kw_only=True)
class ScanConfig:
    """Candidates are all LLMs x layers x positions.

    Raises:
        RecipeError: If a number is too small, or `overrides` change what the scan varies.
    """

    recipe: str
    """Name or path of the recipe."""
    overrides: tuple[str, ...] = ()
    """Changes of it, for all candidates and the plain encoder."""
    llms: tuple[str, ...] = ("smollm2-135m",)
    """Sources of blocks."""
    layers: tuple[str, ...] = ("every:4",)
    """Indices, negative from the end; "all"; "every:N" is the last one and each N-th before it."""
    positions: tuple[str, ...] = ("tail",)
    """Values of graft.at."""
    scores: tuple[str, ...] = ("probe", "cka", "coherence")
    """Rows of `scores.SCORES`."""
    from_run: str | None = None
    """A finished run of the plain arm whose encoder is used; by default one is trained here."""
    draws: int = 5
    """Draws of W1 for each candidate; intervals of probe and cka come from them."""
    train_images: int = 2000
    """Training items that the probe is fitted to."""
    val_images: int = 1000
    """Held-out items that it is scored on. Test items are never used."""
    cka_images: int = 128
    """Held-out items whose tokens cka compares."""
    coherence_batches: int = 8
    """Minibatches whose gradients are compared."""
    coherence_images: int = 32
    """Items of each."""
    train_epochs: int = 1
    """Epochs of the short paired training; 0 leaves it out."""
    train_seeds: int = 2
    """Seeds of it, from the recipe's on."""
    train_steps: int | None = None
    """Most steps of it, by using fewer training items; None sets no limit."""

    def __post_init__(self) -> None:
        for name, least in _AT_LEAST.items():
            if getattr(self, name) < least:
                raise RecipeError(f"--{name.replace('_', '-')} {getattr(self, name)} is too few", f"at least {least}")
        if self.train_steps is not None and self.train_steps < 1:
            raise RecipeError(f"--train-steps {self.train_steps} is too few", "at least 1, or leave it out")
        for name in ("llms", "layers", "positions", "scores"):
            if not getattr(self, name):
                raise RecipeError(f"--{name} names none", f"give at least one, or leave --{name} out")
        for argument in self.overrides:
            instead = _OF_THE_SCAN.get(argument.partition("=")[0])
            if instead:
                raise RecipeError(f"{argument.partition('=')[0]} is what a scan varies", f"use {instead}")

    @property
    def trains(self) -> bool:
        """Whether there is a short paired training."""
        return self.train_epochs > 0

    def effort(self) -> dict[str, Any]:
        """What must be the same for scores to be compared, beside the recipe and the encoder."""
        names = [*_AT_LEAST, "train_steps"]
        return {name: getattr(self, name) for name in names}


def choose_layers(specs: tuple[str, ...], num_layers: int, llm: str) -> list[int]:
    """Layer indices from 0, each once, in order.

    Raises:
        RecipeError: If a spec is none, or a layer does not exist.
    """
    chosen: set[int] = set()
    for spec in specs:
        if spec == ALL:
            chosen |= set(range(num_layers))
        elif spec.startswith(EVERY):
            step = spec.removeprefix(EVERY)
            if not step.isdecimal() or int(step) < 1:
                raise RecipeError(f"--layers {spec}: {step!r} is no step", "for instance every:4")
            chosen |= set(range(num_layers - 1, -1, -int(step)))
        else:
            chosen.add(_index(spec, num_layers, llm))
    return sorted(chosen)


def _index(spec: str, num_layers: int, llm: str) -> int:
    try:
        index = int(spec)
    except ValueError:
        raise RecipeError(f"--layers {spec} is no layer", "give indices, all, or every:4") from None
    if not -num_layers <= index < num_layers:
        raise RecipeError(
            f"--layers {spec}: {llm} has {num_layers} layers", f"0 to {num_layers - 1}, or -1 to -{num_layers}"
        )
    return index % num_layers


def parse_position(text: str) -> str | int:
    """A value of graft.at as the recipe has it: an index where it is a number."""
    try:
        return int(text)
    except ValueError:
        return text
