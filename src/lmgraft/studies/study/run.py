"""Running a study: what is missing is trained, what is there is kept, and the whole is read.

<out>/study.yaml     the resolved study
<out>/runs/<arm>/seed<k>/            a run folder
<out>/runs/<arm>/lr<rate>/seed<k>/   with a grid of learning rates
<out>/runs.jsonl     what a study reads of the finished ones, to be moved or committed
<out>/changes.json   what was changed after results had been read
<out>/failed.json    runs that failed, and why
<out>/flops.json     counted operations of each arm
<out>/times.json     training steps of each arm, timed in turns with the reference arm's
<out>/results.json   everything the report shows
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from lmgraft import records
from lmgraft.errors import RunError
from lmgraft.studies.engine.local import local
from lmgraft.studies.engine.missing import Done, Executor
from lmgraft.studies.engine.progress import Say, silent
from lmgraft.studies.engine.runs import Run, State, as_command, find_runs, reuse, same_run, state_of, train_missing
from lmgraft.studies.robustness.run import check_weights, evaluate_robustness
from lmgraft.studies.study.assemble import assemble, best_rate, completed
from lmgraft.studies.study.checks import check_blocks, check_cells, check_data_and_encoder, check_environment
from lmgraft.studies.study.claim import changes_of_others, check_claim, read_changes, write_claim
from lmgraft.studies.study.config import Study, options_of
from lmgraft.studies.study.costs import counted_flops, timed_pairs
from lmgraft.studies.study.facts import Fact, read_fact, read_facts
from lmgraft.studies.study.failed import failures, forget_finished, note_failed, read_failed
from lmgraft.studies.study.packed import pack, unpack
from lmgraft.studies.study.read import with_intervals_of
from lmgraft.studies.study.results import StudyResult
from lmgraft.training.fit import Verbosity

Rates = Mapping[str, Sequence[float | None]]
"""Arm -> the learning rates at which it is trained."""


def make_cells(study: Study, out: Path, *, foresee: bool = False) -> list[Run]:
    """All runs of a study that are known by now: an arm's rate is not, where some of the runs that choose it have not
    ended; with `foresee` the first rate stands for it."""
    first = _first_stage(study, out)
    if not study.rate_seeds:
        return first
    rates = _rates_compared(study, out)
    if foresee:
        rates = {label: own or study.learning_rates[:1] for label, own in rates.items()}
    return [*first, *_cells(study, out, study.seeds, rates)]


def _stages(study: Study, out: Path) -> Iterator[list[Run]]:
    """What is trained one after the other: the rates that are compared are known when the first stage has ended."""
    yield _first_stage(study, out)
    if study.rate_seeds:
        yield _cells(study, out, study.seeds, _rates_compared(study, out))


def _first_stage(study: Study, out: Path) -> list[Run]:
    rates = study.learning_rates or (None,)
    return _cells(study, out, study.rate_seeds or study.seeds, dict.fromkeys(study.arms, rates))


def _rates_compared(study: Study, out: Path) -> dict[str, tuple[float | None, ...]]:
    """The rate that its runs with `rate_seeds` chose for each arm; none where some of these have not ended."""
    failed, rates = read_failed(out), dict[str, tuple[float | None, ...]]()
    first = _first_stage(study, out)
    for label in study.arms:
        trials = [run for run in first if run.arm == label]
        ended = all(run.finished or run.name in failed for run in trials)
        facts = [read_fact(run, study) for run in trials if run.finished] if ended else []
        rates[label] = (best_rate(facts),) if facts else ()
    return rates


def _cells(study: Study, out: Path, seeds: Sequence[int], rates: Rates) -> list[Run]:
    """Seed by seed, so that every arm has its first seeds early."""
    return [
        Run(
            arm=label,
            seed=seed,
            learning_rate=rate,
            folder=out / "runs" / label / ("" if rate is None else f"lr{rate:g}") / f"seed{seed}",
            recipe=study.recipe,
            options=(
                *options_of(study.overrides),
                *study.arguments,
                *options_of(spec.overrides),
                f"--arm={spec.arm}",
                f"--seed={seed}",
                *(() if rate is None else (f"--optim.lr={rate!r}",)),
            ),
        )
        for seed in seeds
        for label, spec in study.arms.items()
        for rate in rates[label]
    ]


def run_study(
    study: Study,
    out: Path,
    *,
    executor: Executor[Run] | None = None,
    reuse_from: Sequence[Path] = (),
    say: Say | None = None,
    progress: Verbosity = "none",
    allow_difference: bool = False,
) -> StudyResult:
    """Train the runs that are missing, then read and compare all.

    Args:
        study: What is compared.
        out: Folder; finished runs in it are kept, interrupted ones go on.
        executor: Who trains; by default one process after another on this machine.
        reuse_from: Folders with runs; those of the same recipe and seed are copied from there.
        say: Is given what happens.
        progress: Of single runs; see `lmgraft.training.fit.fit`.
        allow_difference: Compare runs of other versions of lmgraft, torch or timm too.

    Raises:
        LmgraftError: If a recipe does not fit, data or block cannot be had, `out` holds another
            study, or some runs failed: those that did not are kept.
    """
    say = say or silent
    check_cells(make_cells(study, out, foresee=True))
    runs: list[Run] = []
    with _held(out):
        for stage in _stages(study, out):
            here = [replace(run, progress=progress) for run in stage]
            _prepare(study, out, here, reuse_from, say, allow_difference)
            failed = train_missing("runs", here, executor or local(), say, partial(_note_end, out))
            forget_finished(out, here)
            if failed:
                _give_up_unless_others_will_do(study, here, failed, say)
            runs += here
        if study.robustness is not None:
            evaluate_robustness([run.folder for run in runs if run.finished], study.robustness, say=say)
        return _summarise(study, out, runs, allow_difference, measure=True)


def missing_commands(
    study: Study, out: Path, *, reuse_from: Sequence[Path] = (), say: Say | None = None, allow_difference: bool = False
) -> list[str]:
    """A shell command for each run that is not finished, after the checks of `run_study`; nothing is trained.

    The commands may run in any order, beside each other, and again where one was stopped. When they are done
    `summarise` compares the runs; where some runs choose the rates of others, ask once more for these first.
    """
    check_cells(make_cells(study, out, foresee=True))
    with _held(out):
        for runs in _stages(study, out):
            _prepare(study, out, runs, reuse_from, say or silent, allow_difference)
            commands = [as_command(run) for run in runs if not run.finished]
            if commands:
                return commands
        return []


def _prepare(
    study: Study, out: Path, runs: Sequence[Run], reuse_from: Sequence[Path], say: Say, allow_difference: bool
) -> None:
    """Check all that could fail, say whose folder it is, and copy what can be used again."""
    unpack(out)
    states, elsewhere = states_of(runs, reuse_from, say)
    changes = [*check_claim(study, out), *changes_of_others(elsewhere.values(), out)]
    there = [replace(run, folder=elsewhere.get(run, run.folder)) for run in runs]
    facts, missing = read_facts(study, there, allow_difference=allow_difference)
    if study.robustness is not None:
        check_weights([run.folder for run in runs if states[run] == "done"])
    if missing:
        if study.robustness is not None:
            study.robustness.suite.check(runs[0].plan.data, study.name, say)
        check_data_and_encoder(study, runs[0], facts)
        check_environment(facts, allow_difference)
        check_blocks([run for run in runs if states[run] != "done"])
    write_claim(study, out, changes)
    for run, source in elsewhere.items():
        reuse(run, source)


def _note_end(out: Path, done: Done[Run]) -> None:
    """Keep what came of a run at once: a study that is interrupted can be moved and gone on with elsewhere."""
    if done.error is not None:
        note_failed(out, done.cell.name, done.error)
    else:
        pack(out.resolve(), [done.cell])


def summarise(study: Study, out: Path, *, allow_difference: bool = False) -> StudyResult:
    """Read a study's finished runs and compare them; writes results.json.

    Raises:
        RunError: If too few runs are there, they do not belong together, or another process is at the study.
    """
    if not out.is_dir():
        raise RunError(f"no run of this study is finished in {out}", "run it without --report-only")
    with _held(out):
        unpack(out)
        cells = make_cells(study, out)
        return _summarise(study, out, cells, allow_difference, measure=False)


def _held(out: Path) -> AbstractContextManager[None]:
    return records.only_one(out / ".study.lock", f"the study in {out}")


def _summarise(study: Study, out: Path, cells: Sequence[Run], allow_difference: bool, *, measure: bool) -> StudyResult:
    """Compare what is finished; with `measure` steps of its arms are timed, where that has not been done."""
    facts, missing = read_facts(study, cells, allow_difference=allow_difference)
    if not facts:
        raise RunError(f"no run of this study is finished in {out}", "run it without --report-only")
    trained = {fact.seed for fact in facts}
    if not trained & set(study.seeds):
        raise RunError(f"only rates were tried in {out} so far", "run it without --report-only")
    reported = replace(study, seeds=tuple(seed for seed in study.seeds if seed in trained))  # others were not looked at
    changes = check_claim(reported, out)
    pack(out, cells)
    result = assemble(study, facts, missing, recipe_yaml=cells[0].plan.yaml)
    if all(fact.measured.items is None for fact in facts):
        result = with_intervals_of(out, result)
    write_claim(reported, out, changes)
    of_arm = {cell.arm: cell for cell in reversed(cells) if cell.arm in {arm.label for arm in result.arms}}
    flops, pairs = counted_flops(of_arm, out), timed_pairs(of_arm, study.reference, out, measure=measure)
    failed, chosen = forget_finished(out, cells), _chosen_rates(facts, result)
    result = completed(
        result, pairs=pairs, flops=flops, findings=[*failures(cells, failed, chosen), *read_changes(out)]
    )
    records.write_json(out / "results.json", asdict(result))
    return result


def _chosen_rates(facts: Sequence[Fact], result: StudyResult) -> dict[str, float | None]:
    """Arm -> the rate of the grid it is compared at; None without a grid."""
    rates = {arm.label: arm.learning_rate for arm in result.arms}
    return {f.arm: f.in_grid for f in facts if f.arm in rates and f.learning_rate == rates[f.arm]}


def _give_up_unless_others_will_do(study: Study, cells: Sequence[Run], failed: Mapping[str, str], say: Say) -> None:
    """A rate of a grid at which runs fail is out, where every arm has another one with all its seeds.

    Raises:
        RunError: If that is not so; it lists what failed.
    """
    listed = "".join(f"\n    {name}: {why}" for name, why in failed.items())
    whole = {
        cell.arm
        for cell in cells
        if all(c.finished for c in cells if (c.arm, c.learning_rate) == (cell.arm, cell.learning_rate))
    }
    if study.learning_rates and whole == set(study.arms):
        say(f"{len(failed)} of {len(cells)} runs failed; their learning rates are out:{listed}")
        return
    raise RunError(
        f"{len(failed)} of {len(cells)} runs failed:{listed}",
        "the others are kept; mend the cause, the same command trains what is missing (--report-only reports what is "
        "there)",
    )


def states_of(
    cells: Sequence[Run], reuse_from: Sequence[Path], say: Say, *, dry_run: bool = False
) -> tuple[dict[Run, State], dict[Run, Path]]:
    """Which runs are done, and of these the folders of those that are only elsewhere, to be copied."""
    states = {cell: state_of(cell, say, dry_run=dry_run) for cell in cells}
    others, elsewhere = find_runs(reuse_from, say), {}
    for cell in [cell for cell in cells if states[cell] == "missing"]:
        source = same_run(cell, others)
        if source is not None:
            say(f"{cell.name}: taken from {source}")
            states[cell], elsewhere[cell] = "done", source
    return states, elsewhere
