"""What all scores of a scan share: the encoder, some items, and its tokens at each position, computed once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lmgraft.contracts import Batch, MeanOf, Reads, take_tokens
from lmgraft.data.base import SplitName, on_device
from lmgraft.data.items import whole_batch
from lmgraft.data.loader import Draw
from lmgraft.errors import RunError
from lmgraft.graft import find_graft
from lmgraft.graft.config import parse_reads
from lmgraft.graft.layer import GraftLayer
from lmgraft.recipes import Recipe, build_model
from lmgraft.studies.scan.candidates import Candidate
from lmgraft.studies.scan.config import ScanConfig
from lmgraft.studies.scan.encoder import scan_recipe
from lmgraft.studies.tokens import Places, TokenBatch, joined, tokens_at
from lmgraft.tasks.base import Task
from lmgraft.training.features import freeze_encoder

PER_CALL = 64  # items the encoder sees at a time
NUMBERS_PER_CALL = 1 << 25  # of the widest intermediate of a block, at a time
_JOINED = 4
_HALF = 6e4  # below float16's largest
_CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class Place:
    """Tokens of the encoder at one position, float16 where they fit into it."""

    train: TokenBatch
    val: TokenBatch
    known: dict[str, float] = field(default_factory=dict)
    """What scores found out about the place itself, for the next candidate there."""


@dataclass(frozen=True, kw_only=True)
class Lab:
    """Everything a score may look at."""

    config: ScanConfig
    recipe: Recipe
    encoder: nn.Module
    task: Task
    """Around the encoder, in eval mode."""
    device: torch.device
    places: dict[str, Place]
    train_targets: Tensor | None
    """(N, K), what a linear probe is to predict; None where the task has no such thing."""
    val_targets: Tensor | None


def choose_items(count: int, of: int) -> list[int]:
    """Samples of a split with `of` items, drawn once and for all: the same for every scan."""
    return sorted(torch.randperm(of, generator=torch.Generator().manual_seed(0))[:count].tolist())


def still_batches(recipe: Recipe, split: SplitName, samples: list[int], size: int) -> Iterator[Batch]:
    """Items as evaluation sees them; files that cannot be read are reported."""
    items = recipe.data.still(split)
    for start in range(0, len(samples), size):
        batch, faults = whole_batch(items.__getitems__([Draw(0, sample) for sample in samples[start : start + size]]))
        recipe.data.report(split, faults)
        yield batch


def open_lab(
    config: ScanConfig,
    recipe: Recipe,
    encoder: nn.Module,
    places: Places,
    device: torch.device,
    say: Callable[[str], None],
) -> Lab:
    """Run the encoder over the items of the scan, once.

    Raises:
        RunError: If its tokens are not finite.
    """
    task = recipe.task(encoder.to(device)).eval()
    asked = parse_reads(recipe.graft.reads)
    found: dict[str, dict[str, TokenBatch]] = {}
    targets: dict[str, Tensor | None] = {}
    splits: dict[SplitName, int] = {"train": config.train_images, "val": config.val_images}
    for split, count in splits.items():
        samples = choose_items(count, len(recipe.data.split(split)))
        kind = "training" if split == "train" else "held-out"
        say(f"Encoder: tokens of {len(samples):,} {kind} {recipe.data.things}")
        parts: dict[str, list[TokenBatch]] = {position: [] for position in places}
        wanted = []
        for batch in still_batches(recipe, split, samples, PER_CALL):
            wanted.append(task.targets(batch))
            for position, tokens in tokens_at(encoder, places, task.inputs(on_device(batch, device)), asked).items():
                parts[position].append(_small(tokens, position))
        found[split] = {position: joined(chunks) for position, chunks in parts.items()}
        given = [values for values in wanted if values is not None]
        targets[split] = torch.cat(given) if given else None
    return Lab(
        config=config,
        recipe=recipe,
        encoder=encoder,
        task=task,
        device=device,
        places={at: Place(train=found["train"][at], val=found["val"][at]) for at in places},
        train_targets=targets["train"],
        val_targets=targets["val"],
    )


def _small(tokens: TokenBatch, position: str) -> TokenBatch:
    if not tokens.x.isfinite().all():
        raise RunError(f"the encoder's tokens at {position} are not finite", "look at the run that trained it")
    return tokens.to(_CPU, torch.float16 if tokens.x.abs().max() < _HALF else torch.float32)


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
def block_outputs(inserted: GraftLayer, tokens: TokenBatch, shorten: Callable[[Tensor, TokenBatch], Tensor]) -> Tensor:
    """What the block gives for `tokens`, its final norm included: (n, R, D) for n of them at a time, `shorten`ed.

    The graft itself computes it, in whichever form it chooses; the result is float32.

    Args:
        shorten: Given a part of the outputs, and the tokens that it was made of.
    """
    config = inserted.block.config
    widest = tokens.x.shape[1] * max(config.mlp_dim, config.dim)
    rows = max(1, min(len(tokens), NUMBERS_PER_CALL // widest))
    parameter = inserted.mapper_in.weight
    parts = []
    with _catching(inserted.mapper_out) as caught:
        for start in range(0, len(tokens), rows):
            part = tokens[start : start + rows].to(parameter.device, parameter.dtype)
            inserted(part.x, part.padded, reads=part.reads)
            parts.append(shorten(caught.pop(), part).float().cpu())
    return torch.cat(parts)


@contextmanager
def _catching(module: nn.Module) -> Iterator[list[Tensor]]:
    caught: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda _, args: caught.append(args[0]))
    try:
        yield caught
    finally:
        handle.remove()


def as_features(y: Tensor, tokens: TokenBatch) -> Tensor:
    """(B, R, C) -> (B, F) for a linear reader: a few tokens side by side, of more the mean over those not padded.

    Args:
        y: The tokens of `tokens` that the head reads, or what a block makes of them; one where it reads their mean.
    """
    reads: Reads = tokens.reads
    if isinstance(reads, MeanOf):
        return take_tokens(y, reads.tokens).mean(1) if y.shape[1] > 1 else y.flatten(1)
    padded = tokens.padded
    if y.shape[1] == 1 or (y.shape[1] <= _JOINED and (padded is None or reads is not None)):
        return y.flatten(1)
    if padded is None:
        return y.mean(1)
    seen = take_tokens(~padded.unsqueeze(-1), reads)
    return y.masked_fill(~seen, 0).sum(1) / seen.sum(1).clamp_min(1)


def encoder_features(tokens: TokenBatch) -> Tensor:
    """The encoder's own tokens that the head reads, or behind which other layers follow, as features."""
    x, reads = tokens.x.float(), tokens.reads
    return as_features(x if isinstance(reads, MeanOf) else take_tokens(x, reads), tokens)
