"""Looking at finished runs beside each other: item by item, then compared.

<out>/items/LABEL-DIGEST.npz       scores and probes of each item of a run, taken up again where they are there
<out>/masked/LABEL-DIGEST.npz      its metric with tokens masked
<out>/gradients/LABEL-DIGEST.npz   what the coherence of its gradients is made of
<out>/analysis.json                everything that the page shows
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch

from lmgraft import records
from lmgraft.analysis.similarity import linear_cka
from lmgraft.checkpoint.digest import json_digest
from lmgraft.contracts import Metric
from lmgraft.data.base import Data
from lmgraft.data.items import spread_over
from lmgraft.errors import HostError, LmgraftError, RunError
from lmgraft.studies.analyze.compare import (
    by_arm,
    comparisons,
    found,
    interval_of,
    leading_arm,
    loss_rows,
    probes,
    reached,
)
from lmgraft.studies.analyze.config import AnalyzeConfig
from lmgraft.studies.analyze.gallery import Exhibit, choose, exhibits
from lmgraft.studies.analyze.given import check_seeds, open_runs
from lmgraft.studies.analyze.gradients import PASSES, coherences, independent, item_products
from lmgraft.studies.analyze.look import Arrays, Opened, columns, look, untrained
from lmgraft.studies.analyze.masking import Amplified, losses, passes
from lmgraft.studies.analyze.results import FILE, Analysis, Coherence, Effort, Rule, Similarity, Subject
from lmgraft.studies.engine.progress import Say, duration, silent
from lmgraft.tasks.items import NotFiniteColumnError
from lmgraft.training.items import read_arrays, write_arrays
from lmgraft.words.numbers import sentence_case

_LARGEST_PASS, _SIMILAR = 64, 32
_RANDOM = "random_frozen"
"""The arm whose block amplifies without having learnt to; it is looked at first."""
_CHOSEN_BY = "2"
"""Which rules choose tokens: columns of masked tokens are made again where an earlier version chose otherwise."""
_OF_THE_PAGE = ("limit", "causal", "coherence", "gallery")
"""Settings that columns do not depend on, their items apart."""


@dataclass(frozen=True)
class RandomBlock:
    """What the block of a run of `random_frozen` amplifies."""

    weights: str
    """Digest of the run's weights."""
    amplified: Amplified


@dataclass(frozen=True)
class Ended:
    """A run that has been looked at."""

    subject: Subject
    columns: Arrays
    before: Arrays | None
    """Of the model before training, for each run of the leading arm and the first of every other."""
    masked: Arrays | None
    gradients: Arrays | None


def analyze_runs(
    run_dirs: Sequence[Path],
    out: Path,
    config: AnalyzeConfig | None = None,
    *,
    overrides: Sequence[str] = (),
    others: Data | None = None,
    say: Say = silent,
) -> tuple[Analysis, list[Exhibit]]:
    """Look at runs and compare them; what is there of an interrupted look is kept.

    Args:
        run_dirs: Finished runs of `lmgraft train` or of a study; those of one arm count as its seeds.
        out: Folder of the analysis.
        config: What is looked at.
        overrides: Changes of the recipes, such as ["--data.root", "DIR"].
        others: Data whose items are looked at in place of the runs' test items, such as images with masks.
        say: Is told what happens, with the time left.

    Returns:
        What was found, also in `out`/analysis.json, and the items of the gallery.

    Raises:
        LmgraftError: If a run is not finished, its model is no host that lmgraft knows, the runs have other data, or
            runs of one arm are not its seeds.
    """
    config, started = config or AnalyzeConfig(), time.monotonic()
    runs = open_runs(run_dirs, overrides, others)
    check_seeds(runs)
    ended: dict[str, Ended] = {}
    random_blocks: dict[int, RandomBlock] = {}
    notes: list[str] = []
    lead = _leading(runs).recipe.arm
    for run in sorted(runs, key=lambda run: run.recipe.arm != _RANDOM):
        samples = spread_over(len(run.items), config.limit)
        floor = run.recipe.arm == lead or all(run.recipe.arm != one.subject.arm for one in ended.values())
        looked = _kept(out / "items", run, config, samples, lambda r, s: _columns(r, s, config, say))
        before = None
        if floor and any(name.startswith("score/") for name in looked):
            try:
                floored = untrained(run)
            except LmgraftError as error:  # what it began with need not be here
                notes.append(f"{run.label}: it was not looked at as it was before training ({error.message}).")
            else:
                before = _kept(out / "items", floored, config, samples, lambda r, s: _columns(r, s, config, say))
        masked = _masked(run, config, samples, out, random_blocks, notes, say)
        gradients = _gradients(run, config, independent(samples, looked, config.coherence), out, say)
        ended[run.label] = Ended(_subject(run, looked), looked, before, masked, gradients)
    analysis = _compared([ended[run.label] for run in runs], runs, config, notes, say)
    shown = _gallery(runs, ended, config, say)
    analysis = replace(analysis, efforts=_efforts(analysis, ended, shown), seconds=time.monotonic() - started)
    records.write_json(out / FILE, asdict(analysis))
    return analysis, shown


def _kept(
    folder: Path,
    run: Opened,
    config: AnalyzeConfig,
    samples: Sequence[int],
    make: Callable[[Opened, Sequence[int]], Arrays],
    beside: str = "",
) -> Arrays:
    """Columns from a file that an earlier call wrote for the same weights and settings, or made now.

    Args:
        beside: What they depend on too, such as another run's weights.
    """
    settings = {name: value for name, value in asdict(config).items() if name not in _OF_THE_PAGE}
    weights = run.weights if run.trained else ""
    made_from: dict[str, Any] = {"shown": run.source} if run.other is not None else {}
    made_from |= {"weights": weights, "beside": beside, "recipe": run.recipe.yaml, "settings": settings}
    key = json_digest({**made_from, "samples": list(samples)})[:12]
    name = run.label.replace(" ", "-").replace("/", "-")
    file = folder / f"{name}-{key}.npz"
    if file.is_file():
        return read_arrays(file)
    made = make(run, samples)
    for old in folder.glob(f"{name}-{'?' * 12}.npz"):
        old.unlink()
    write_arrays(file, made)
    return made


def _size(run: Opened, config: AnalyzeConfig) -> int:
    return config.batch_size or min(run.recipe.data.eval_batch_size, _LARGEST_PASS)


def _passes(run: Opened) -> int:
    """Of an item that is looked at: one of the model, and one of its graft in dense form."""
    return 1 if run.inserted is None else 2


def _timer(what: str, total: int, things: str, say: Say) -> Callable[[int], None]:
    started = time.monotonic()
    latest = [started]

    def done(count: int) -> None:
        now = time.monotonic()
        if count == total or now - latest[0] > 10:
            latest[0] = now
            left = (now - started) / count * (total - count)
            say(f"{what}: {count} of {total} {things}" + (f", about {duration(left)} left" if count < total else ""))

    return done


def _columns(run: Opened, samples: Sequence[int], config: AnalyzeConfig, say: Say) -> Arrays:
    tell = _timer(f"{run.label} ({_each(_passes(run))})", len(samples), run.recipe.data.things, say)
    try:
        return columns(run, samples, _size(run, config), config.layers, tell)
    except NotFiniteColumnError as error:
        raise RunError(f"{run.folder}: {error}", "its model gives numbers that are none: train it again") from None


def _masked(
    run: Opened,
    config: AnalyzeConfig,
    samples: Sequence[int],
    out: Path,
    random_blocks: dict[int, RandomBlock],
    notes: list[str],
    say: Say,
) -> Arrays | None:
    """What masking takes; also notes by seed what a random block amplifies.

    A run is masked by the random block of its own seed, or of the first one where there is none.
    """
    if run.inserted is None or not config.causal or not run.labelled:
        return None
    chosen = [samples[i] for i in spread_over(len(samples), config.causal)]
    is_random = run.recipe.arm == _RANDOM
    beside = None if is_random else random_blocks.get(run.recipe.seed) or next(iter(random_blocks.values()), None)
    rules = len(get_args(Rule)) - (beside is None)
    tell = _timer(
        f"{run.label}, tokens masked ({_each(passes(config.shares, rules))})", len(chosen), run.recipe.data.things, say
    )

    def make(run: Opened, chosen: Sequence[int]) -> Arrays:
        amplifies = Amplified() if beside is None else beside.amplified
        made, amplified = losses(
            run, chosen, config.shares, size=_size(run, config), seed=config.seed, other=amplifies, say=tell
        )
        order = [amplified[int(index)] for index in made["index"]]
        alike = len({len(one) for one in order}) == 1
        return made | ({"amplified": np.stack([one.numpy() for one in order])} if alike else {})

    try:
        made = _kept(out / "masked", run, config, chosen, make, _CHOSEN_BY + ("" if beside is None else beside.weights))
    except HostError as error:
        notes.append(f"{run.label}: tokens could not be masked ({error.message}).")
        return None
    if is_random and "amplified" in made:
        amplified = dict(zip(made["index"].tolist(), torch.from_numpy(made["amplified"]), strict=True))
        random_blocks[run.recipe.seed] = RandomBlock(run.weights, amplified)
    return made


def _gradients(run: Opened, config: AnalyzeConfig, samples: Sequence[int], out: Path, say: Say) -> Arrays | None:
    if not config.coherence or not run.labelled:
        return None
    each = f"{PASSES} passes forward and {PASSES} back each"
    tell = _timer(f"{run.label}, gradients ({each})", len(samples), run.recipe.data.things, say)
    return _kept(out / "gradients", run, config, samples, lambda run, samples: item_products(run, samples, tell))


def _subject(run: Opened, looked: Arrays) -> Subject:
    metric = run.task.primary
    values, inserted = looked.get(f"task/{metric.column}"), run.inserted
    batch = next(run.batches([0], 1))
    seen = look(run, batch, layers=False)
    return Subject(
        label=run.label,
        arm=run.recipe.arm,
        seed=run.recipe.seed,
        folder=str(run.folder),
        metric=None if values is None else float(values.mean()),
        metric_interval=None if values is None else interval_of(values.astype(float), looked["group"], metric.bounds),
        items=len(looked["index"]),
        tokens=seen.noted.at[run.last].tokens.shape[1],
        block=None if inserted is None else inserted.block.provenance.to_dict(),
    )


def _compared(
    ended: Sequence[Ended], opened: Sequence[Opened], config: AnalyzeConfig, notes: list[str], say: Say
) -> Analysis:
    first = opened[0]
    has_truth = any(name.startswith("score/") for one in ended for name in one.columns)
    if not has_truth:
        notes.append("The data have no truth: how well maps find the object was not measured.")
    notes += dict.fromkeys(f"{sentence_case(remark)}." for run in opened for remark in run.recipe.data.remarks)
    looked = {one.subject.label: one.columns for one in ended}
    before = {f"{one.subject.label} untrained": one.before for one in ended if one.before is not None}
    masked = {one.subject.label: one.masked for one in ended if one.masked is not None}
    subjects, every = [one.subject for one in ended], looked | before
    arms = {subject.label: subject.arm for subject in subjects}
    return Analysis(
        metric=first.task.primary,
        things=first.recipe.data.things,
        limit=config.limit,
        causal=config.causal,
        has_truth=has_truth,
        subjects=subjects,
        reached=reached(subjects, looked, first.task.primary),
        found=found({label: [columns] for label, columns in every.items()}),
        found_by_arm=found(by_arm(subjects, every)),
        probes=probes(by_arm(subjects, looked)),
        similarities=[one for run in opened if (one := _similarity(run, config, notes, say)) is not None],
        coherences=_alike(ended, notes),
        masked_metric=first.task.alone,
        losses=loss_rows({(label, arms[label]): [columns] for label, columns in masked.items()}, first.task.alone),
        losses_by_arm=loss_rows({(a, a): of for a, of in by_arm(subjects, masked).items()}, first.task.alone),
        comparisons=comparisons(subjects, looked, before, masked, first.task.alone),
        gallery_run=_leading(opened).label,
        gallery_metric=_graded(first, ended[0].columns).title.removeprefix("test ") if first.labelled else "",
        notes=notes,
        config=asdict(config),
        shown=None if first.other is None else first.other.about,
        data=first.source,
        environment=records.environment(),
        seconds=0.0,
    )


def _alike(ended: Sequence[Ended], notes: list[str]) -> list[Coherence]:
    """Coherence of each run's gradients; a note where there is none."""
    rows: list[Coherence] = []
    for one in ended:
        if one.gradients is not None:
            try:
                rows += coherences(one.subject.label, one.gradients)
            except RunError as error:
                notes.append(f"{one.subject.label}: gradients could not be compared ({error.message}).")
    return rows


def _similarity(run: Opened, config: AnalyzeConfig, notes: list[str], say: Say) -> Similarity | None:
    """CKA between all stages, over the tokens of a few items that are not padded; a note where there is none."""
    kept: dict[str, list[torch.Tensor]] = {}
    samples, done = spread_over(len(run.items), _SIMILAR), 0
    tell = _timer(
        f"{run.label}, similarity of stages ({_each(_passes(run))})", len(samples), run.recipe.data.things, say
    )
    for batch in run.batches(samples, _size(run, config)):
        noted = look(run, batch, config.layers).noted
        for stage, features in noted.at.items():
            tokens, padded = features.tokens, noted.padded
            if padded is None or padded.shape != tokens.shape[:2]:
                padded = torch.zeros(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
            kept.setdefault(stage, []).append(tokens[~padded].cpu())
        done += len(batch.index)
        tell(done)
    joined = {stage: torch.cat(parts) for stage, parts in kept.items()}
    alike = {stage: one for stage, one in joined.items() if len(one) == len(next(reversed(joined.values())))}
    try:
        matrix = [[linear_cka(one, two) for two in alike.values()] for one in alike.values()]
    except ValueError as error:
        notes.append(f"{run.label}: stages could not be compared ({error}).")
        return None
    return Similarity(label=run.label, stages=list(alike), cka=matrix, items=done)


def _graded(run: Opened, looked: Arrays) -> Metric:
    """A metric that tells items apart more finely than right and wrong, where the task has one: its loss."""
    scored = [m for m in run.task.scored.values() if f"task/{m.column}" in looked and not m.higher_is_better]
    return scored[0] if scored else run.task.alone


def _leading(opened: Sequence[Opened]) -> Opened:
    """The first run of the leading arm."""
    arm = leading_arm({run.recipe.arm: run.inserted is not None for run in opened})
    return next(run for run in opened if run.recipe.arm == arm)


def _gallery(opened: Sequence[Opened], ended: Mapping[str, Ended], config: AnalyzeConfig, say: Say) -> list[Exhibit]:
    """Chosen by the leading arm's first run: how well its last stage finds the object, or else how well it does."""
    if not config.gallery:
        return []
    lead = _leading(opened)
    looked = ended[lead.label].columns
    truth, metric = f"score/{lead.last}/magnitude/best_iou", _graded(lead, looked)
    scores = looked[truth] if truth in looked else metric.direction * looked[f"task/{metric.column}"].astype(float)
    samples = spread_over(len(lead.items), config.limit)
    by_index = {int(index): sample for sample, index in zip(samples, lead.items.indices[samples].tolist(), strict=True)}
    picked = choose(scores, config.gallery, config.seed)
    chosen = [
        (rule, by_index[int(looked["index"][at])], int(looked["index"][at]), float(scores[at])) for rule, at in picked
    ]
    tell = _timer(
        f"gallery ({_each(_single(ended[lead.label].subject))})",
        len(chosen) * len(opened),
        lead.recipe.data.things,
        say,
    )
    return exhibits(
        [lead, *(run for run in opened if run is not lead)], chosen, metric, size=_size(lead, config), say=tell
    )


def _single(subject: Subject) -> int:
    """Passes of an item of the gallery: it is looked at twice, and its tokens are masked one by one."""
    return subject.tokens + (3 if subject.block is None else 5)


def _each(count: int) -> str:
    return "1 pass each" if count == 1 else f"{count} passes each"


def _efforts(analysis: Analysis, ended: Mapping[str, Ended], shown: Sequence[Exhibit]) -> list[Effort]:
    """What was computed of each item, by the run that took most."""
    looks = 1 + any(one.subject.block is not None for one in ended.values())
    masks = 2 + max(Counter(one.label for one in analysis.losses).values(), default=0)
    needed = max((_single(one.subject) for one in ended.values()), default=0)
    items = max(one.subject.items for one in ended.values())
    alike = max((one.items for one in analysis.coherences), default=0)
    rows = [
        Effort(what="looked", items=items, forward=looks),
        Effort(what="untrained", items=items * any(one.before is not None for one in ended.values()), forward=looks),
        Effort(what="masked", items=max((one.items for one in analysis.losses), default=0), forward=masks),
        Effort(what="gradients", items=alike, forward=PASSES, backward=PASSES),
        Effort(what="cka", items=max((one.items for one in analysis.similarities), default=0), forward=looks),
        Effort(what="gallery", items=len(shown), forward=needed),
    ]
    return [row for row in rows if row.items]
