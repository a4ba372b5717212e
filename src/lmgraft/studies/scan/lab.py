"""What all scores of a scan share: the encoder, the images, and its tokens at each position, computed once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lmgraft.contracts import GraftPoint, Host, MeanOf, Reads, map_axes, take_tokens, to_tokens
from lmgraft.data.base import SplitName, whole_batch
from lmgraft.data.labelled import LabelledSet as ImageSet
from lmgraft.data.loader import Draw
from lmgraft.errors import HostError, RunError
from lmgraft.graft import find_graft
from lmgraft.graft.config import parse_reads
from lmgraft.graft.layer import GraftLayer
from lmgraft.recipes import Recipe, build_model
from lmgraft.studies.scan.candidates import Candidate
from lmgraft.studies.scan.config import ScanConfig
from lmgraft.studies.scan.encoder import scan_recipe
from lmgraft.training.features import freeze_encoder

PER_CALL = 64  # images the encoder sees at a time
NUMBERS_PER_CALL = 1 << 25  # of the widest intermediate of a block, at a time
_JOINED = 4
_HALF = 6e4  # below float16's largest


@dataclass(frozen=True, kw_only=True)
class Place:
    """Tokens of the encoder at one position, (N, T, V), float16 where they fit into it."""

    host: Host
    last: bool
    reads: Reads
    """What the head reads, where only it follows."""
    train: Tensor
    val: Tensor
    known: dict[str, float] = field(default_factory=dict)
    """What scores found out about the place itself, for the next candidate there."""


@dataclass(frozen=True, kw_only=True)
class Lab:
    """Everything a score may look at."""

    config: ScanConfig
    recipe: Recipe
    encoder: nn.Module
    device: torch.device
    places: dict[str, Place]
    train_labels: Tensor
    val_labels: Tensor

    @property
    def num_classes(self) -> int:
        return self.recipe.data.num_classes


def choose_images(images: ImageSet, count: int) -> list[int]:
    """Samples of a split, drawn once and for all: the same for every scan."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return sorted(order[:count].tolist())


def still_batches(recipe: Recipe, split: SplitName, samples: list[int], size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Images (B, C, H, W) as evaluation sees them, and labels; files that cannot be read are reported."""
    images = recipe.data.still(split)
    for start in range(0, len(samples), size):
        batch, faults = whole_batch(images.__getitems__([Draw(0, sample) for sample in samples[start : start + size]]))
        recipe.data.report(split, faults)
        yield batch[0], batch[1]


def open_lab(
    config: ScanConfig,
    recipe: Recipe,
    encoder: nn.Module,
    places: dict[str, tuple[Host, GraftPoint]],
    device: torch.device,
    say: Callable[[str], None],
) -> Lab:
    """Run the encoder over the images of the scan, once.

    Raises:
        RunError: If its tokens are not finite.
    """
    encoder.eval().to(device)
    found: dict[str, dict[str, Tensor]] = {}
    labels: dict[str, Tensor] = {}
    for split, count in (("train", config.train_images), ("val", config.val_images)):
        samples = choose_images(recipe.data.split(split), count)  # type: ignore[arg-type]
        say(f"Encoder: tokens of {len(samples):,} {'training' if split == 'train' else 'held-out'} images")
        parts: dict[str, list[Tensor]] = {position: [] for position in places}
        seen = []
        for images, truth in still_batches(recipe, split, samples, PER_CALL):  # type: ignore[arg-type]
            for position, tokens in tokens_at(encoder, places, images.to(device)).items():
                parts[position].append(_small(tokens.cpu(), position))
            seen.append(truth)
        found[split] = {position: torch.cat(chunks) for position, chunks in parts.items()}
        labels[split] = torch.cat(seen)
    asked = parse_reads(recipe.graft.reads)
    return Lab(
        config=config,
        recipe=recipe,
        encoder=encoder,
        device=device,
        places={
            position: Place(
                host=host,
                last=point.last,
                reads=None if not point.last else host.reads(encoder, (), {}) if asked is None else asked,
                train=found["train"][position],
                val=found["val"][position],
            )
            for position, (host, point) in places.items()
        },
        train_labels=labels["train"],
        val_labels=labels["val"],
    )


@torch.no_grad()
def tokens_at(model: nn.Module, places: dict[str, tuple[Host, GraftPoint]], images: Tensor) -> dict[str, Tensor]:
    """Tokens (B, T, V) at each position of a plain encoder, in one pass.

    Raises:
        HostError: If what passes there is no tokens, as a graft would say.
    """
    caught: dict[str, Tensor] = {}
    handles = []
    for position, (host, point) in places.items():

        def catch(given: Any, position: str = position, host: Host = host, when: str = point.when) -> None:
            tokens = host.output.take(given) if when == "after" else given[0]
            lies = map_axes(tokens, host.axes, host.embed_dim) if isinstance(tokens, Tensor) else None
            if lies is None:
                raise HostError(f"--positions {position}: no tokens {host.embed_dim} wide pass there")
            caught[position] = to_tokens(tokens, lies)

        module = model.get_submodule(point.module)
        if point.when == "before":
            handles.append(module.register_forward_pre_hook(lambda *call, catch=catch: catch(call[-1])))
        else:
            handles.append(module.register_forward_hook(lambda *call, catch=catch: catch(call[-1])))
    try:
        model(images)
    finally:
        for handle in handles:
            handle.remove()
    return caught


def _small(tokens: Tensor, position: str) -> Tensor:
    if not tokens.isfinite().all():
        raise RunError(f"the encoder's tokens at {position} are not finite", "look at the run that trained it")
    return tokens.half() if tokens.abs().max() < _HALF else tokens.float()


def candidate_model(lab: Lab, candidate: Candidate) -> nn.Module:
    """The candidate as the recipe would begin to train it, but with the trained encoder; in eval mode."""
    model = build_model(scan_recipe(lab.config, *candidate.overrides()), initial=False)
    graft_only = model.load_state_dict(lab.encoder.state_dict(), strict=False)
    assert not graft_only.unexpected_keys
    assert all(key.startswith("graft.") for key in graft_only.missing_keys)
    if lab.recipe.features.cached:
        freeze_encoder(model)
    return model.eval().to(lab.device)


def draws_of(lab: Lab, model: nn.Module) -> Iterator[GraftLayer]:
    """The candidate's graft with its mappers as each of `draws` seeds gives them; the first is the recipe's."""
    inserted = find_graft(model)
    assert inserted is not None
    for seed in range(lab.recipe.seed, lab.recipe.seed + lab.config.draws):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            drawn = GraftLayer(inserted.block, inserted.host, inserted.config, inserted.host_spec)
        yield drawn.eval().to(lab.device)


@torch.no_grad()
def block_outputs(
    inserted: GraftLayer, tokens: Tensor, reads: Reads, shorten: Callable[[Tensor], Tensor] = lambda y: y
) -> Tensor:
    """What the block gives for `tokens` (N, T, V), its final norm included: (N, R, D), each part `shorten`ed; float32.

    The graft itself computes it, in whichever form it chooses.
    """
    config = inserted.block.config
    widest = tokens.shape[1] * max(config.mlp_dim, config.dim)
    rows = max(1, min(len(tokens), NUMBERS_PER_CALL // widest))
    parameter = inserted.mapper_in.weight
    parts = []
    with _catching(inserted.mapper_out) as caught:
        for part in torch.split(tokens, rows):
            inserted(part.to(parameter.device, parameter.dtype), reads=reads)
            parts.append(shorten(caught.pop()).float().cpu())
    return torch.cat(parts)


@contextmanager
def _catching(module: nn.Module) -> Iterator[list[Tensor]]:
    caught: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda _, args: caught.append(args[0]))
    try:
        yield caught
    finally:
        handle.remove()


def as_features(tokens: Tensor) -> Tensor:
    """(B, R, C) -> (B, F) for a linear reader: a few tokens side by side, of more their mean."""
    return tokens.flatten(1) if tokens.shape[1] <= _JOINED else tokens.mean(1)


def encoder_features(place: Place, tokens: Tensor) -> Tensor:
    """The encoder's own tokens that the head reads, or behind which other layers follow, as features."""
    reads = place.reads
    wide = tokens.float()
    if isinstance(reads, MeanOf):
        return take_tokens(wide, reads.tokens).mean(1)
    return as_features(take_tokens(wide, reads))
