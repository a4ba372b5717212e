"""What each candidate will take, counted from shapes before anything is computed.

Times are the counted products at the rates of `graft.forms.cost`; what is not counted (reading
items, norms, activations, the optimiser) comes on top. Memory is estimated to refuse, not to report.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from lmgraft.contracts import count_tokens
from lmgraft.errors import RunError
from lmgraft.graft.config import parse_reads
from lmgraft.graft.forms.cost import MACHINES, seconds
from lmgraft.graft.forms.plan import choose
from lmgraft.graft.forms.problem import Problem
from lmgraft.recipes import Recipe
from lmgraft.studies.bench.memory import SHARE, total_memory
from lmgraft.studies.scan.candidates import Anatomy, Candidate
from lmgraft.studies.scan.config import ScanConfig
from lmgraft.studies.scan.lab import NUMBERS_PER_CALL
from lmgraft.studies.scan.scores.cka import MOST_TOKENS
from lmgraft.studies.tokens import Places, tokens_at

_PROCESS = 760 << 20
_KEPT = 20  # numbers an encoder layer keeps for backward, in multiples of a token's width
_EIGEN = 9  # multiply-adds of an eigendecomposition, in cubes of its size


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """What a candidate's cost depends on, beside its block."""

    encoder_params: int
    layers: int
    items: int
    """Training items of an epoch of the short training."""
    tested: int
    """Held-out and test items that each of its runs is evaluated on."""
    tokens: dict[str, int]
    """T by position."""
    reads: dict[str, int]
    """R by position."""
    widths: dict[str, int]
    """V by position."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of one candidate."""

    candidate: Candidate
    seconds: dict[str, float]
    """By score; "train" is of all its seeds."""
    memory: int
    """Bytes at the peak of its scores."""


def shapes_of(config: ScanConfig, recipe: Recipe, training: Recipe, model: nn.Module, places: Places) -> Shapes:
    """One example through the encoder says how many tokens there are, and how many are read.

    Args:
        training: The recipe of the short training; its data set up.
    """
    inputs = recipe.task(model.eval()).eval().inputs(recipe.data.example(1))
    found = tokens_at(model, places, inputs, parse_reads(recipe.graft.reads))
    tokens = {position: found[position].x.shape[1] for position in places}
    return Shapes(
        encoder_params=sum(p.numel() for p in model.parameters()),
        layers=max(len(host.layers) for host, _ in places.values()),
        items=len(training.data.split("train")) * training.data.repeats,
        tested=len(training.data.split("val")) * config.train_epochs + len(training.data.split("test")),
        tokens=tokens,
        reads={position: count_tokens(tokens[position], found[position].reads) for position in places},
        widths={position: host.embed_dim for position, (host, _) in places.items()},
    )


def cost_of(config: ScanConfig, candidate: Candidate, anatomy: Anatomy, shapes: Shapes, device: str) -> Cost:
    """Seconds by score, and bytes."""
    tokens, width = shapes.tokens[candidate.position], shapes.widths[candidate.position]
    reads = shapes.reads[candidate.position]
    block = anatomy.config
    rate = MACHINES.get(device, MACHINES["cuda"]).multiply_adds

    def through(items: int, reads: int, train: bool = False) -> float:
        problem = Problem(
            config=block,
            batch=items,
            tokens=tokens,
            reads=reads,
            narrow=width,
            x_grad=train,
            mapper_grad=train,
            device=device,
        )
        return seconds(choose(problem), problem)

    def encoder(items: int) -> float:
        return shapes.encoder_params * tokens * items / rate

    probed = config.train_images + config.val_images
    features = block.dim * (1 if reads == tokens else reads)
    smaller = min(config.train_images, features)
    took = {
        "probe": config.draws * (through(probed, reads) + (_EIGEN * smaller**3 + 12 * smaller**2 * features) / rate),
        "cka": config.draws * through(config.cka_images, tokens),
        "coherence": config.coherence_batches
        * (3 * encoder(config.coherence_images) + through(config.coherence_images, reads, train=True)),
    }
    spent = {name: took[name] for name in config.scores}
    if config.trains:
        one = config.train_epochs * (3 * encoder(shapes.items) + through(shapes.items, reads, train=True))
        one += encoder(shapes.tested) + through(shapes.tested, reads)
        spent["train"] = config.train_seeds * one
    mappers = 2 * width * block.dim
    trained = shapes.encoder_params + mappers
    memory = _PROCESS + 4 * (2 * shapes.encoder_params + mappers + block.num_params()) + 16 * NUMBERS_PER_CALL
    memory += 2 * probed * sum(shapes.tokens[p] * shapes.widths[p] for p in shapes.tokens)
    needs = [0]
    if "probe" in config.scores:
        needs.append(8 * (3 * probed * features + 2 * smaller**2))
    if "cka" in config.scores:
        needs.append(12 * MOST_TOKENS * (block.dim + width) + 24 * min(MOST_TOKENS, block.dim) ** 2)
    if "coherence" in config.scores:
        rows = config.coherence_images * tokens
        kept = rows * width * _KEPT * shapes.layers + config.coherence_images * reads * (
            6 * block.dim + 3 * block.mlp_dim
        )
        needs.append(4 * (trained * (config.coherence_batches + 1) + 2 * kept))
    return Cost(candidate=candidate, seconds=spent, memory=memory + max(needs))


def check_memory(costs: Sequence[Cost]) -> None:
    """Refuse candidates that need more memory than this machine has.

    Raises:
        RunError: It names the largest.
    """
    limit = SHARE * total_memory()
    large = [cost for cost in costs if cost.memory > limit]
    if large:
        worst = max(large, key=lambda cost: cost.memory)
        raise RunError(
            f"{len(large)} of {len(costs)} candidates need more memory than there is: {worst.candidate.title} about "
            f"{worst.memory / 2**30:.1f} GiB, of {total_memory() / 2**30:.1f} GiB",
            "leave such LLMs out, or lower --train-images, --val-images, --coherence-batches or --coherence-images",
        )
