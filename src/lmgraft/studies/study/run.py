"""Running a study: what is missing is trained, what is there is kept, and the whole is read.

<out>/study.yaml     the resolved study
<out>/runs/...       a run folder for each arm and seed
<out>/runs.jsonl     what a study reads of the finished ones, to be moved or committed
<out>/changes.json   what was changed after results had been read
<out>/failed.json    runs that failed, and why
<out>/flops.json     counted operations of each arm
<out>/times.json     training steps of each arm, timed in turns with the reference arm's
<out>/results.json   everything the report shows
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean

from lmgraft import records
from lmgraft.errors import RunError
from lmgraft.studies.progress import Say, duration, silent
from lmgraft.studies.robustness.run import check_weights, evaluate_robustness
from lmgraft.studies.study.assemble import assemble, time_findings, with_times
from lmgraft.studies.study.cells import Cell, State, find_runs, make_cells, reuse, same_run, state_of
from lmgraft.studies.study.checks import check_blocks, check_cells, check_data, check_environment
from lmgraft.studies.study.claim import changes_of_others, check_claim, read_changes, write_claim
from lmgraft.studies.study.config import Study
from lmgraft.studies.study.facts import Fact, read_facts
from lmgraft.studies.study.failed import failures, forget_finished, note_failed
from lmgraft.studies.study.flops import counted_flops
from lmgraft.studies.study.jobs import Executor, Job, only_one
from lmgraft.studies.study.local import local
from lmgraft.studies.study.packed import pack, unpack
from lmgraft.studies.study.read import with_intervals_of
from lmgraft.studies.study.results import ArmResult, StudyResult, worded
from lmgraft.studies.study.times import timed_pairs
from lmgraft.training.fit import Verbosity


def run_study(
    study: Study,
    out: Path,
    *,
    executor: Executor | None = None,
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
        say: Told what happens.
        progress: Of single runs; see `lmgraft.training.fit.fit`.
        allow_difference: Compare runs of other versions of lmgraft, torch or timm too.

    Raises:
        LmgraftError: If a recipe does not fit, data or block cannot be had, `out` holds another
            study, or some runs failed: those that did not are kept.
    """
    say = say or silent
    cells = make_cells(study, out)
    check_cells(cells)
    with _held(out):
        unpack(out)
        states, elsewhere = states_of(cells, reuse_from, say)
        changes = [*check_claim(study, out), *changes_of_others(elsewhere.values(), out)]
        there = [replace(cell, folder=elsewhere.get(cell, cell.folder)) for cell in cells]
        facts, missing = read_facts(study, there, allow_difference=allow_difference)
        if study.robustness is not None:
            check_weights([cell.folder for cell in cells if states[cell] == "done"])
        if missing:
            if study.robustness is not None:
                study.robustness.suite.check(cells[0].plan.data, study.name, say)
            check_data(study, cells[0], facts)
            check_environment(facts, allow_difference)
            check_blocks([cell for cell in cells if states[cell] != "done"])
        write_claim(study, out, changes)
        for cell, source in elsewhere.items():
            reuse(cell, source)
        failed = _train(cells, states, out, executor or local(), say, progress)
        forget_finished(out, cells)
        if failed:
            _give_up_unless_others_will_do(study, cells, failed, say)
        if study.robustness is not None:
            finished = [cell.folder for cell in cells if (cell.folder / "result.json").exists()]
            evaluate_robustness(finished, study.robustness, say=say)
        return _summarise(study, out, cells, allow_difference, measure=True)


def summarise(study: Study, out: Path, *, allow_difference: bool = False) -> StudyResult:
    """Read a study's finished runs and compare them; writes results.json.

    Raises:
        RunError: If too few runs are there, they do not belong together, or another process is at the study.
    """
    if not out.is_dir():
        raise RunError(f"no run of this study is finished in {out}", "run it without --report-only")
    cells = make_cells(study, out)
    with _held(out):
        unpack(out)
        return _summarise(study, out, cells, allow_difference, measure=False)


def _held(out: Path) -> AbstractContextManager[None]:
    return only_one(out / ".study.lock", f"the study in {out}")


def _summarise(study: Study, out: Path, cells: Sequence[Cell], allow_difference: bool, *, measure: bool) -> StudyResult:
    """Compare what is finished; with `measure` steps of its arms are timed, where that has not been done."""
    facts, missing = read_facts(study, cells, allow_difference=allow_difference)
    if not facts:
        raise RunError(f"no run of this study is finished in {out}", "run it without --report-only")
    trained = {fact.seed for fact in facts}
    reported = replace(study, seeds=tuple(seed for seed in study.seeds if seed in trained))  # others were not looked at
    changes = check_claim(reported, out)
    pack(out, cells)
    result = assemble(study, facts, missing, recipe_yaml=cells[0].plan.yaml)
    if all(fact.items is None for fact in facts):
        result = with_intervals_of(out, result)
    write_claim(reported, out, changes)
    of_arm = {cell.arm: cell for cell in reversed(cells) if cell.arm in {arm.label for arm in result.arms}}
    flops, pairs = counted_flops(of_arm, out), timed_pairs(of_arm, study.reference, out, measure=measure)
    failed, chosen = forget_finished(out, cells), _chosen_rates(facts, result)
    result = with_times(result, pairs)
    result = replace(
        result,
        arms=[_with_flops(arm, flops.get(arm.label)) for arm in result.arms],
        findings=[*result.findings, *failures(cells, failed, chosen), *read_changes(out), *time_findings(result)],
    )
    result = worded(result)
    records.write_json(out / "results.json", asdict(result))
    return result


def _chosen_rates(facts: Sequence[Fact], result: StudyResult) -> dict[str, float | None]:
    """Arm -> the rate of the grid it is compared at; None without a grid."""
    rates = {arm.label: arm.learning_rate for arm in result.arms}
    return {f.arm: f.in_grid for f in facts if f.arm in rates and f.learning_rate == rates[f.arm]}


def _with_flops(arm: ArmResult, flops: tuple[float, float] | None) -> ArmResult:
    if flops is None:
        return arm
    return replace(arm, cost=replace(arm.cost, train_flops=flops[0], eval_flops=flops[1]))


def _give_up_unless_others_will_do(study: Study, cells: Sequence[Cell], failed: Mapping[str, str], say: Say) -> None:
    """A rate of a grid at which runs fail is out, where every arm has another one with all its seeds.

    Raises:
        RunError: If that is not so; it lists what failed.
    """
    listed = "".join(f"\n    {name}: {why}" for name, why in failed.items())
    whole = {
        cell.arm
        for cell in cells
        if all((c.folder / "result.json").exists() for c in cells if (c.arm, c.learning_rate) == _of(cell))
    }
    if study.learning_rates and whole == set(study.arms):
        say(f"{len(failed)} of {len(cells)} runs failed; their learning rates are out:{listed}")
        return
    raise RunError(
        f"{len(failed)} of {len(cells)} runs failed:{listed}",
        "the others are kept; mend the cause, the same command trains what is missing (--report-only reports what is "
        "there)",
    )


def _of(cell: Cell) -> tuple[str, float | None]:
    return cell.arm, cell.learning_rate


def states_of(
    cells: Sequence[Cell], reuse_from: Sequence[Path], say: Say, *, dry_run: bool = False
) -> tuple[dict[Cell, State], dict[Cell, Path]]:
    """Which runs are done, and of these the folders of those that are only elsewhere, to be copied."""
    states = {cell: state_of(cell, say, dry_run=dry_run) for cell in cells}
    others, elsewhere = find_runs(reuse_from, say), {}
    for cell in [cell for cell in cells if states[cell] == "missing"]:
        source = same_run(cell, others)
        if source is not None:
            say(f"{cell.name}: taken from {source}")
            states[cell], elsewhere[cell] = "done", source
    return states, elsewhere


def _train(
    cells: Sequence[Cell], states: Mapping[Cell, State], out: Path, executor: Executor, say: Say, progress: Verbosity
) -> dict[str, str]:
    """Do what is not done; name of a failed run -> why."""
    todo = {cell.name: cell for cell in cells if states[cell] != "done"}
    say(f"{len(cells)} runs, {len(cells) - len(todo)} done, {len(todo)} to train")
    jobs = [
        Job(name=name, recipe=cell.recipe, options=cell.options, folder=str(cell.folder.resolve()), progress=progress)
        for name, cell in todo.items()
    ]
    clock, failed = _Clock(todo), {}
    for done in executor(jobs, say) if jobs else ():
        if done.error is not None:
            failed[done.job.name] = done.error
            note_failed(out, done.job.name, done.error)
        said = "failed: " + done.error if done.error is not None else f"done in {done.seconds:.0f} s"
        say(f"[{clock.count(done.job.name, done.seconds)}/{len(todo)}] {done.job.name}: {said}; {clock.left()}")
    return failed | dict.fromkeys(clock.todo, "it was not run to its end")


class _Clock:
    """Time left, from how long each arm's runs took, and how many ran beside each other."""

    def __init__(self, todo: Mapping[str, Cell]) -> None:
        self._arms = {name: cell.arm for name, cell in todo.items()}
        self.todo = list(todo)
        """Names of runs that have not been counted."""
        self._took: dict[str, list[float]] = {}
        self._started = time.monotonic()

    def count(self, name: str, seconds: float) -> int:
        if name in self.todo:
            self.todo.remove(name)
            self._took.setdefault(self._arms[name], []).append(seconds)
        return len(self._arms) - len(self.todo)

    def left(self) -> str:
        if not self.todo:
            return "nothing left"
        every = [seconds for took in self._took.values() for seconds in took]
        beside = max(1.0, sum(every) / max(1e-3, time.monotonic() - self._started))
        seconds = sum(fmean(self._took.get(self._arms[name], every)) for name in self.todo) / beside
        return f"about {duration(seconds)} left"
