"""Ratios of times: what a busy machine does to them, and that it is noticed."""

import io
import itertools
import json
import multiprocessing
import shutil
import time
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from studying import study_of, without_flops

from lmgraft.analysis.timing import MOST_UNEVEN, StepPairs, time_ratio
from lmgraft.errors import RunError
from lmgraft.recipes import read_result
from lmgraft.studies import step_times
from lmgraft.studies.bench.measure import interleave
from lmgraft.studies.study import costs
from lmgraft.studies.study.read import read_study
from lmgraft.studies.study.results import Cost
from lmgraft.studies.study.run import make_cells, summarise
from lmgraft.training import clock
from lmgraft.training.callbacks import Stopwatch
from lmgraft.words.timing import caution, of_the_block

EVIDENCE = Path(__file__).parents[2] / "evidence"
MODULE = SimpleNamespace(device=torch.device("cpu"))


class Machine:
    """Clocks of a machine on which work takes longer, by the wall, the busier it is."""

    def __init__(self, monkeypatch):
        self.wall = self.cpu = 0.0
        self.threads = torch.get_num_threads()
        monkeypatch.setattr(clock, "perf_counter", lambda: self.wall)
        monkeypatch.setattr(clock, "cpu_seconds", lambda: self.cpu)

    def work(self, seconds, busy=1.0):
        """As much as takes this long on a quiet machine."""
        self.wall += busy * seconds
        self.cpu += 0.9 * self.threads * seconds


def cost(**figures):
    return Cost(trained_params=1, frozen_params=0, peak_memory=None, **figures)


def trained(machine, *stretches):
    """What a run of these (seconds, busy) takes, as its result tells it."""
    watch = Stopwatch()
    watch.on_train_start(None, MODULE)
    for seconds, busy in stretches:
        machine.work(seconds, busy)
    watch.on_train_end(None, MODULE)
    of = watch.clock
    return cost(seconds=of.seconds, share=of.share, threads=of.threads, device_seconds=watch.device_seconds)


def test_a_neighbour_in_one_arms_time_takes_the_ratio_away(monkeypatch):
    """The block cost 1.4 times as much, and "took 0.28 times as long": the plain arm had a fifth of the machine."""
    machine = Machine(monkeypatch)
    plain, llm = trained(machine, (162, 5.0)), trained(machine, (227, 1.0))
    assert llm.seconds / plain.seconds == pytest.approx(0.28, abs=0.001)
    found = time_ratio(llm, plain)
    assert (found.basis, found.ratio) == ("uneven shares", None)
    assert found.shares == pytest.approx((0.9, 0.18))
    assert "0.28" not in " ".join(of_the_block(found, 1.4))
    assert "1.40" in of_the_block(found, 1.4)[-1]
    quiet = time_ratio(llm, trained(machine, (162, 1.1)))
    assert (quiet.basis, quiet.ratio) == ("runs", pytest.approx(227 / (162 * 1.1)))


def test_steps_in_turns_tell_the_ratio_whatever_the_machine_does(monkeypatch):
    machine = Machine(monkeypatch)
    seen, busy = [], itertools.cycle([1.0, 1.0, 7.0, 7.0, 2.0, 2.0])  # two steps of a round meet the same machine

    def stepper(name, seconds):
        def step():
            machine.work(seconds, next(busy))
            seen.append(name)

        return step

    steps = {"A": stepper("A", 1.3), "B": stepper("B", 1.0)}
    times = interleave(steps, rounds=8, seconds=1e6, warmup=1, clock=lambda: machine.wall)
    ours, theirs = times["A"], times["B"]
    assert all({*pair} == {"A", "B"} for pair in zip(seen[::2], seen[1::2], strict=True))
    assert len(ours) == len(theirs) == len(seen) // 2 - 1
    pairs = StepPairs(seconds=ours, reference_seconds=theirs, device="cpu")
    uneven = cost(seconds=1.0, share=0.9, threads=1, device="cpu"), cost(seconds=4.0, share=0.2, threads=1)
    found = time_ratio(*uneven, pairs)
    assert (found.basis, found.ratio) == ("steps", pytest.approx(1.3))
    assert found.quartiles == pytest.approx((1.3, 1.3))


@given(st.floats(0.05, 1.5), st.floats(0.05, 1.5), st.floats(0.01, 1e4), st.floats(0.01, 1e4))
def test_a_ratio_of_runs_stands_only_on_alike_shares(share, other, seconds, others):
    a = cost(seconds=seconds, share=share, threads=2)
    b = cost(seconds=others, share=other, threads=2)
    found, turned = time_ratio(a, b), time_ratio(b, a)
    alike = max(share, other) <= MOST_UNEVEN * min(share, other)
    assert (found.ratio is not None) == alike == (found.basis == "runs")
    assert found.basis == turned.basis
    if alike:
        assert found.ratio == pytest.approx(1 / turned.ratio)


def test_what_else_forbids_a_ratio_or_gives_one():
    base = cost(seconds=10.0, share=0.9, threads=2, device="cuda:0", device_seconds=4.0)
    for changes, basis, ratio in (
        ({"device_seconds": 8.0}, "device", 2.0),
        ({"device_seconds": None}, "runs", 1.0),
        ({"device_seconds": None, "threads": 4}, "other machine", None),
        ({"device": "cpu", "device_seconds": None}, "other machine", None),
        ({"device_seconds": None, "share": None}, "share unknown", 1.0),
        ({"device_seconds": None, "seconds": 0.0}, "no time", None),
    ):
        found = time_ratio(replace(base, **changes), base)
        assert (found.basis, found.ratio) == (basis, ratio)
        assert of_the_block(found, None)
    on_cpu = StepPairs(seconds=[3.0], reference_seconds=[1.0], device="cpu")
    assert time_ratio(base, base, on_cpu).basis == "device"  # trained on a GPU, timed elsewhere


def test_a_resumed_run_adds_up_and_one_of_an_old_checkpoint_is_not_known(monkeypatch):
    machine = Machine(monkeypatch)
    first = Stopwatch()
    first.on_train_start(None, MODULE)
    machine.work(10, busy=2.0)
    state = first.state_dict()
    machine.work(100)  # after the last checkpoint, and lost
    second = Stopwatch()
    second.load_state_dict(torch.load(_saved(state), weights_only=True))
    second.on_train_start(None, MODULE)
    machine.work(30)
    second.on_train_end(None, MODULE)
    machine.work(50)
    assert second.state_dict()["seconds"] == pytest.approx(50)
    assert second.clock.cpu_seconds == pytest.approx(0.9 * machine.threads * 40)
    assert second.clock.share == pytest.approx(0.9 * 40 / 50)
    third = Stopwatch()
    third.load_state_dict({"seconds": 5.0, "peak_memory": 1})
    third.on_train_start(None, MODULE)
    machine.work(1)
    third.on_train_end(None, MODULE)
    assert (third.clock.seconds, third.clock.cpu_seconds, third.clock.share) == (pytest.approx(6), None, None)


def _saved(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return file


class Event:
    """An event of a GPU whose clock gains 3 ms from one event to the next."""

    now = 0.0

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        Event.now += 3.0
        self.at = Event.now

    def query(self):
        return False  # the GPU lags behind

    def synchronize(self):
        pass

    def elapsed_time(self, end):
        return end.at - self.at


def test_a_gpus_own_events_add_up_to_device_seconds(monkeypatch):
    monkeypatch.setattr(torch.cuda, "Event", Event)
    watch, module = Stopwatch(), SimpleNamespace(device=torch.device("cuda:0"))
    watch.on_train_start(None, module)
    for step in range(4):
        watch.on_train_batch_start(None, module, None, step)
        watch.on_train_batch_end(None, module, None, None, step)
    assert watch.state_dict()["device_seconds"] == pytest.approx(0.012)
    again = Stopwatch()
    again.load_state_dict(watch.state_dict())
    again.on_train_start(None, MODULE)  # on a CPU this time
    again.on_train_end(None, MODULE)
    assert again.device_seconds is None


def _burn(seconds, done, end):
    while time.process_time() < seconds:
        pass
    done.set()
    end.wait(10)


def test_children_count_while_they_live_and_when_they_have_ended(monkeypatch):
    context = multiprocessing.get_context("fork")
    done, end = context.Event(), context.Event()
    before, own = clock.cpu_seconds(), time.process_time()
    child = context.Process(target=_burn, args=(0.1, done, end))
    child.start()
    assert done.wait(30)
    living = clock.cpu_seconds() - before - (time.process_time() - own)
    assert living >= 0.08  # /proc counts in hundredths
    monkeypatch.setattr(clock, "_PROC", Path("/nowhere"))
    assert clock.cpu_seconds() is None
    end.set()
    child.join()
    ended = clock.cpu_seconds() - before - (time.process_time() - own)
    assert ended >= 0.09


def test_runs_record_what_they_had_of_the_machine(tiny_study):
    result = read_result(tiny_study[0] / "runs" / "llm" / "seed0")
    assert result.threads == torch.get_num_threads()
    assert result.cpu_seconds > 0
    assert result.share == pytest.approx(result.cpu_seconds / (result.seconds * result.threads))
    assert result.device_seconds is None
    study = read_study(tiny_study[0])
    assert study.arms[0].cost.time.basis == "reference"
    assert study.arms[1].cost.share > 0


def test_a_study_tells_no_ratio_of_times_on_uneven_shares(tiny_study, recipe_file, tmp_path, monkeypatch):
    without_flops(monkeypatch)
    out = tmp_path / "out"
    shutil.copytree(tiny_study[0], out)
    shares = {"plain": 0.9, "llm": 0.3, "random_frozen": None}
    for arm, share in shares.items():
        for file in (out / "runs" / arm).glob("seed*/result.json"):
            file.write_text(json.dumps(json.loads(file.read_text()) | {"share": share, "cpu_seconds": None}))
    result = summarise(study_of(recipe_file), out)
    found = {arm.label: arm.cost.time for arm in result.arms}
    assert [time.basis for time in found.values()] == ["reference", "uneven shares", "share unknown"]
    assert found["llm"].ratio is None
    assert found["random_frozen"].ratio == pytest.approx(result.arms[2].cost.seconds / result.arms[0].cost.seconds)
    notes = [caution("uneven shares", ["llm"], "plain"), caution("share unknown", ["random_frozen"], "plain")]
    assert len(notes) == 2
    assert set(notes) <= set(result.notes)
    assert read_study(out) == result


def test_old_evidence_has_its_ratios_with_the_share_unknown():
    study = read_study(EVIDENCE / "fashion_controls")
    base = next(arm for arm in study.arms if arm.label == study.reference)
    for arm in study.arms:
        if arm is not base:
            assert arm.cost.time.basis == "share unknown"
            assert arm.cost.time.ratio == arm.cost.seconds / base.cost.seconds


def test_steps_of_a_study_are_timed_once_and_again_for_another_recipe(recipe_file, tmp_path, monkeypatch):
    asked = []

    def time_arms(recipes, reference, say):
        asked.append(sorted(recipes))
        return real(recipes, reference, say)

    real = costs.time_arms
    monkeypatch.setattr(costs, "time_arms", time_arms)
    monkeypatch.setattr(step_times, "_SECONDS", 0.0)
    only = ("--arms", "plain,llm")
    arms = {cell.arm: cell for cell in make_cells(study_of(recipe_file, *only), tmp_path)}
    assert costs.timed_pairs(arms, "plain", tmp_path, measure=False, here=True) == {}
    pairs = costs.timed_pairs(arms, "plain", tmp_path, here=True)
    assert asked == [["llm", "plain"]]
    assert set(pairs) == {"llm"}
    kept = json.loads((tmp_path / "times.json").read_text())["llm"]
    assert kept["batch_size"] == 24
    assert (kept["threads"], kept["device"], kept["reference"]) == (torch.get_num_threads(), "cpu", "plain")
    assert asdict(pairs["llm"]) == {name: kept[name] for name in ("seconds", "reference_seconds", "device")}
    assert costs.timed_pairs(arms, "plain", tmp_path, measure=False) == pairs
    assert costs.timed_pairs(arms, "elsewhere", tmp_path) == {}
    other = {cell.arm: cell for cell in make_cells(study_of(recipe_file, *only, "--optim.lr", "0.1"), tmp_path)}
    costs.timed_pairs(arms | {"llm": other["llm"]}, "plain", tmp_path, here=True)
    assert asked[1:] == [["llm", "plain"]]
    assert json.loads((tmp_path / "times.json").read_text())["llm"]["recipe"] != kept["recipe"]
    (tmp_path / "times.json").write_text("{")
    monkeypatch.setattr(costs, "time_arms", _fails)
    assert costs.timed_pairs(arms, "plain", tmp_path, here=True) == {}


def _fails(*_):
    raise RunError("no block", "get it")
