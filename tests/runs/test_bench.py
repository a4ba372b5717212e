"""The benchmark: what it refuses, keeps, computes and writes; and that its arms are what they are called."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import timm
import torch

import lmgraft
import padded_host
from lmgraft.block import BlockConfig
from lmgraft.cli.main import main
from lmgraft.errors import LmgraftError, RunError
from lmgraft.graft import GraftConfig, find_graft
from lmgraft.graft.forms.cost import operations
from lmgraft.graft.forms.problem import LayerPlan
from lmgraft.recipes.grafted import graft_arm
from lmgraft.report.bench.explained import describe
from lmgraft.report.bench.figures import by_tokens, by_width, write_figures
from lmgraft.report.bench.table import HEADER, line, markdown, rows
from lmgraft.studies.bench import blocks, hosts, run, token_hosts
from lmgraft.studies.bench.arms import Arm, chosen_plan, make_arm, make_step
from lmgraft.studies.bench.blocks import SHAPES, make_block
from lmgraft.studies.bench.cells import GRIDS, PLAIN, Cell, narrowed
from lmgraft.studies.bench.explain import _explain, explain_cell, explain_folder
from lmgraft.studies.bench.measure import interleave, ratios, spread
from lmgraft.studies.bench.memory import block_config, estimate, total_memory
from lmgraft.studies.bench.observe import following, observed
from lmgraft.studies.bench.results import FILE, CellResult, read_results, this_context
from lmgraft.studies.bench.run import Settings, run_bench
from lmgraft.studies.engine.worker import WorkerDiedError
from tiny import calls_of, images, make_vit, relative_error

VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 7}
BLOCK = {"dim": 64, "num_heads": 4, "num_kv_heads": 2, "head_dim": 16, "mlp_dim": 96}
CELL = Cell(host="tiny", block="tiny", batch=3, phase="train", forms=(PLAIN, "auto", "dense"))
QUICK = Settings(rounds=3, seconds=0.0, memory=False)
GIB = 1 << 30


def tiny_vit():
    model = timm.create_model("vit_tiny_patch16_224", **VIT)
    return hosts.BenchHost(model=model, draw=hosts.image_draw(model), depth=2)


SMALL = {"depth": 2, "embed_dim": 24, "num_heads": 2, "num_classes": 5}


def small_video():
    return token_hosts.video(**SMALL, frames=4, image_size=32)


def small_points():
    return token_hosts.points(**SMALL, groups=6, points=4)


def small_padded():
    """Two inputs, padding and a loss of its own: what a row needs, and no more."""
    model = padded_host.PaddedEncoder(embed_dim=24)

    def draw(batch, device):
        items = padded_host.PaddedData().example(batch)
        inputs = items.points.to(device), items.padded.to(device), items.context.to(device)
        return inputs, lambda out: (out - items.target.to(device)).square().mean()

    return hosts.BenchHost(model=model, draw=draw, depth=2)


@pytest.fixture(autouse=True)
def _tiny(monkeypatch):
    """An encoder of 17 tokens, a block of 64, and a pool of few random numbers."""
    monkeypatch.setitem(hosts.HOSTS._rows, "tiny", "test_bench:tiny_vit")
    monkeypatch.setitem(SHAPES, "tiny", BLOCK)
    monkeypatch.setattr(blocks, "_POOL", 4093)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # several threads wait for each other longer than such products take
    yield
    torch.set_num_threads(threads)


class Apart:
    """Calls functions here and now, or only answers as they would, and remembers which."""

    def __init__(self, fails=(), real=True):
        self.calls, self.fails, self.real = [], fails, real

    def __call__(self, function, cell, *args):
        self.calls.append((function.__name__, args[0]))
        if function.__name__ in self.fails:
            raise WorkerDiedError("a training process died")
        if not self.real:
            return GIB if function is run.peak_of_arm else ({form: [1.0, 2.0, 3.0] for form in args[0]}, {})
        return function(cell, *args)

    def names(self):
        names = [name for name, _ in self.calls]
        self.calls.clear()
        return names


# --- what is measured


def test_the_dense_arm_runs_the_whole_block_on_every_token():
    block = make_block("tiny")
    for form, expected in (("dense", 3 * 17), ("auto", 3 * 1)):
        arm = make_arm(CELL, form, block)
        seen = calls_of(find_graft(arm.model).block.layers[0].mlp)
        arm.step()
        assert [x.shape[0] * x.shape[1] for x, _ in seen] == [expected]
    assert chosen_plan(make_arm(CELL, "dense", block), CELL) == "dense"
    assert "q" in chosen_plan(make_arm(CELL, "auto", block), CELL)


def test_arms_share_host_batch_and_block_and_only_training_changes_weights():
    block = make_block("tiny")
    plain, auto = make_arm(CELL, PLAIN, None), make_arm(CELL, "auto", block)
    mine, theirs = plain.model.state_dict(), auto.model.state_dict()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert find_graft(auto.model).block is block
    before = {name: t.clone() for name, t in auto.model.state_dict().items()}
    make_arm(replace(CELL, phase="eval"), "auto", block).step()
    auto.step()
    changed = [name for name, t in auto.model.state_dict().items() if not torch.equal(t, before[name])]
    assert "graft.mapper_in.weight" in changed
    assert "blocks.0.attn.qkv.weight" in changed


def test_rounds_are_interleaved_and_ratios_taken_round_by_round():
    now, took, ran = [0.0], {"plain": [1.0, 2.0, 4.0, 1.0], "auto": [1.5, 3.0, 8.0, 1.5]}, []

    def step(name):
        def run():
            warm = ran.count(name) < 1
            now[0] += 0 if warm else took[name][ran.count(name) - 1]
            ran.append(name)

        return run

    times = interleave({n: step(n) for n in took}, rounds=4, seconds=1e9, warmup=1, clock=lambda: now[0])
    assert times == took
    assert sorted(ran[:2]) == sorted(ran[2:4]) == ["auto", "plain"]
    assert ratios(times, "auto", "plain") == [1.5, 1.5, 2.0, 1.5]
    found = spread([1.5, 1.5, 2.0, 1.5])
    assert (found.median, found.min, found.max, found.q1, found.count) == (1.5, 1.5, 2.0, 1.5, 4)
    assert spread([3.0]).q1 == spread([3.0]).q3 == 3.0


@pytest.mark.parametrize(("seconds", "expected"), [(1e9, 5), (0.5, 3)])
def test_slow_cells_stop_after_their_time_but_not_before_three_rounds(seconds, expected):
    ticks = iter(range(10_000))
    times = interleave({"a": lambda: None}, rounds=5, seconds=seconds, warmup=0, clock=lambda: float(next(ticks)))
    assert len(times["a"]) == expected


def test_grids_hold_what_they_promise():
    full = GRIDS["full"]()
    assert len({str(cell) for cell in full}) == len(full)
    dense = [cell for cell in full if "dense" in cell.forms]
    assert {cell.host.partition("@")[0] for cell in dense} == {"vit_small_patch16_224"}
    assert {cell.batch for cell in dense if "@" not in cell.host} == {1, 8, 32}
    assert {cell.phase for cell in full if cell.batch == 128} == {"eval"}
    assert {(cell.block, cell.storage) for cell in GRIDS["large"]()} == {
        ("llama-70b", "bfloat16"),
        ("llama-405b", "bfloat16"),
    }
    asked = narrowed(full, hosts=["vit-s@448"], batches=[2], storage="bfloat16")
    assert {cell.host for cell in asked} == {"vit_small_patch16_224@448"}
    assert {cell.storage for cell in asked} == {"bfloat16"}
    assert narrowed(full) == full


def test_shapes_are_those_of_the_llms():
    params = {name: BlockConfig(**SHAPES[name]).num_params() for name in SHAPES}
    assert params["llama-7b"] == 202_383_360
    assert params["smollm2-135m"] == 3_540_096
    assert params["qwen2.5-1.5b"] == 46_797_824
    assert 3.1e9 < params["llama-405b"] < 3.3e9


def test_synthetic_blocks_are_narrow_unhashed_and_alike_each_time(monkeypatch):
    monkeypatch.setattr("lmgraft.block.block.tensor_digest", lambda _: pytest.fail("hashed"))
    block = make_block("tiny", "bfloat16")
    assert {p.dtype for p in block.parameters()} == {torch.bfloat16}
    assert "random weights" in block.provenance.source
    again = make_block("tiny", "bfloat16")
    assert block.provenance.digest == again.provenance.digest != make_block("tiny").provenance.digest
    assert all(torch.equal(a, b) for a, b in zip(block.parameters(), again.parameters(), strict=True))
    assert 0.5 < float(block.layers[0].mlp.up.weight.float().std()) * 8 < 2


@pytest.mark.parametrize(("name", "tokens", "reads"), [("videomae-like", 1568, 1568), ("point-bert-like", 65, 65)])
def test_shapes_of_hosts_that_read_every_token(name, tokens, reads):
    found = hosts.facts(name)
    assert (found.tokens, found.reads, found.embed_dim, found.depth) == (tokens, reads, 384, 12)
    assert hosts.facts("vit-s@112").tokens == 50


@pytest.mark.parametrize(("row", "reads"), [("video", 8), ("points", 7), ("padded", 1)])
def test_a_row_of_the_table_is_all_that_a_host_needs(monkeypatch, row, reads):
    monkeypatch.setitem(hosts.HOSTS._rows, "small", f"test_bench:small_{row}")
    facts = hosts.facts("small")
    assert (facts.tokens, facts.reads, facts.embed_dim, facts.depth) == (max(reads, 7), reads, 24, 2)
    arm = make_arm(replace(CELL, host="small"), "auto", make_block("tiny"))
    seen = calls_of(find_graft(arm.model))
    arm.step()
    assert seen[0][0].shape == (3, facts.tokens, 24)
    assert seen[0][1].shape == (3, 1 if row == "padded" else facts.tokens, 24)
    auto, dense = (make_arm(replace(CELL, host="small"), form, make_block("tiny")) for form in ("auto", "dense"))
    inputs, _ = auto.draw(3, "cpu")
    assert relative_error(auto.model(*inputs), dense.model(*inputs)) < 1e-5
    explained = explain_cell(replace(CELL, host="small", phase="eval"), rounds=3, seconds=0.0)
    assert explained.layers[0].problem.reads == reads


# --- what is refused, kept and written


def test_a_recipe_is_measured_on_its_own_items_with_its_own_loss():
    host = hosts.build("motion/vectornet_sumo_debug")
    inputs, loss_of = host.draw(3, "cpu")
    assert len(inputs[0]) == 3
    shapes = hosts.facts("motion/vectornet_sumo_debug")
    assert (shapes.reads, shapes.embed_dim, shapes.depth) == (1, host.model.embed_dim, 1)
    cell = Cell(host="motion/vectornet_sumo_debug", block="tiny", batch=3, phase="train")
    arm = make_arm(cell, "auto", make_block("tiny"))
    before = {name: p.clone() for name, p in arm.model.named_parameters()}
    arm.step()
    assert find_graft(arm.model) is not None
    assert any(not torch.equal(before[name], p) for name, p in arm.model.named_parameters())
    assert loss_of(host.model(*inputs)) > 0


def test_names_on_the_hub_are_timm_s(monkeypatch):
    made = []
    monkeypatch.setattr(hosts, "_timm", lambda name: made.append(name))
    hosts.build("hf-hub:timm/vit_tiny_patch16_224")
    assert made == ["hf-hub:timm/vit_tiny_patch16_224"]


@pytest.mark.parametrize(
    ("name", "message"),
    [("motion/none", "no recipe"), ("vision_language/emoji_retrieval_debug", "calls its model several times")],
)
def test_a_recipe_that_cannot_be_measured_says_why(name, message):
    with pytest.raises(LmgraftError, match=message):
        hosts.build(name)


def test_a_cell_that_is_too_large_is_refused_and_not_tried(tmp_path):
    apart = Apart()
    (result,) = run_bench([CELL], tmp_path, QUICK, apart=apart, total=GIB // 8)
    assert result.status == "refused"
    assert not apart.calls
    assert result.needed["dense"] > result.needed[PLAIN] > result.allowed == int(0.7 * (GIB // 8))
    (said,) = json.loads((tmp_path / FILE).read_text())["results"]
    assert said["status"] == "refused"
    assert "refused: needs about" in markdown([result])
    assert "refused" in line(rows(result)[0])


def test_the_dense_arm_alone_is_refused(tmp_path):
    cell = replace(CELL, batch=4096)
    needed = estimate(cell, hosts.facts("tiny"), block_config("tiny"))
    assert needed[PLAIN] < needed["auto"] < needed["dense"]
    between = int((needed["auto"] + needed["dense"]) / 2 / 0.7)
    (result,) = run_bench([cell], tmp_path, QUICK, apart=Apart(real=False), total=between)
    assert result.status == "measured"
    assert list(result.times) == [PLAIN, "auto"]
    assert result.refused == ("dense",)
    assert "refused" in line(rows(result)[1])


def test_the_large_blocks_are_expected_to_fit_in_24_gib():
    for cell in GRIDS["large"]():
        needed = estimate(cell, hosts.facts(cell.host), block_config(cell.block))
        assert max(needed.values()) < 0.7 * 24 * GIB


def test_a_second_run_measures_only_what_is_missing(tmp_path, monkeypatch):
    apart = Apart(real=False)
    other = replace(CELL, phase="eval", forms=(PLAIN, "auto"))
    run_bench([CELL], tmp_path, QUICK, apart=apart)
    assert apart.names() == ["time_arms"]
    first = (tmp_path / FILE).read_text()
    run_bench([CELL], tmp_path, QUICK, apart=apart)
    assert (tmp_path / FILE).read_text() == first
    run_bench([replace(CELL, forms=(PLAIN, "auto"))], tmp_path, QUICK, apart=apart)
    assert apart.names() == []
    run_bench([CELL, other], tmp_path, QUICK, apart=apart)
    assert apart.names() == ["time_arms"]
    run_bench([replace(other, forms=(PLAIN, "auto", "reads"))], tmp_path, QUICK, apart=apart)
    assert apart.names() == ["time_arms"]
    assert len(read_results(tmp_path)) == 2
    run_bench([CELL], tmp_path, replace(QUICK, memory=True), apart=apart)
    assert apart.names() == ["peak_of_arm"] * 3
    run_bench([CELL], tmp_path, replace(QUICK, fresh=True), apart=apart)
    assert apart.names() == ["time_arms"]
    context = replace(this_context(), threads=this_context().threads + 1)
    monkeypatch.setattr(run, "this_context", lambda _: context)
    run_bench([CELL], tmp_path, QUICK, apart=apart)
    assert apart.names() == ["time_arms"]
    assert len(read_results(tmp_path)) == 3


def test_a_cell_whose_process_dies_does_not_end_the_others(tmp_path):
    cells = [CELL, replace(CELL, phase="eval")]
    failed = run_bench(cells, tmp_path, QUICK, apart=Apart(fails=("time_arms",)))
    assert [result.status for result in failed] == ["failed", "failed"]
    assert "memory ran out" in line(rows(failed[0])[0])
    assert "training process" not in failed[0].message
    again = run_bench(cells, tmp_path, QUICK, apart=Apart(real=False))
    assert [result.status for result in again] == ["measured", "measured"]
    lost = run_bench(cells[:1], tmp_path, replace(QUICK, memory=True), apart=Apart(fails=("peak_of_arm",)))
    assert lost[0].times == again[0].times
    assert "peak memory" in lost[0].message


def test_the_plain_peak_is_measured_once_for_all_blocks(tmp_path, monkeypatch):
    monkeypatch.setitem(SHAPES, "other", BLOCK | {"dim": 32})
    apart = Apart(real=False)
    cells = [replace(CELL, block=block, forms=(PLAIN, "auto")) for block in ("tiny", "other")]
    found = run_bench(cells, tmp_path, replace(QUICK, memory=True), apart=apart)
    assert [arm for name, arm in apart.calls if name == "peak_of_arm"] == [PLAIN, "auto", "auto"]
    assert found[0].peaks[PLAIN] == found[1].peaks[PLAIN] > 0
    assert found[1].memory_ratio("auto") == found[1].peaks["auto"] / (found[1].peaks[PLAIN] + found[1].block_bytes)


def test_what_is_written_is_read_again_and_has_its_summary(tmp_path):
    found = run_bench([CELL], tmp_path, replace(QUICK, memory=True), apart=Apart())
    assert read_results(tmp_path) == found
    said = json.loads((tmp_path / FILE).read_text())
    assert {"format", "method", "environment", "results"} == said.keys()
    assert "AdamW" in said["method"]
    (one,) = said["results"]
    for arm in CELL.forms:
        times, summary = one["times"][arm], one["summary"][arm]
        assert summary["seconds"]["median"] == sorted(times)[len(times) // 2]
        assert summary["ratio_to_plain"]["count"] == len(times)
        assert summary["peak_over_plain_and_block"] > 0
    assert one["summary"][PLAIN]["ratio_to_plain"]["median"] == 1
    (tmp_path / FILE).write_text('{"format": 1}')
    with pytest.raises(RunError, match="no benchmark"):
        read_results(tmp_path)


# --- what is shown


def fake(host="tiny", block="tiny", tokens=17, width=64, phase="train", **times):
    cell = replace(CELL, host=host, block=block, phase=phase, forms=(PLAIN, *times))
    plain = [1.0, 2.0, 3.0]
    return CellResult(
        cell=cell,
        context=this_context().to_dict(),
        status="measured",
        tokens=tokens,
        llm_width=width,
        times={PLAIN: plain, **{form: [by * t for t in plain] for form, by in times.items()}},
    )


def test_the_table_shows_medians_and_ratios():
    (row,) = rows(fake(auto=1.25))
    assert len(row) == len(HEADER)
    assert dict(zip(HEADER, row, strict=True))["ratio"] == "1.25"
    assert dict(zip(HEADER, row, strict=True))["plain, ms"] == "2000.0"
    page = markdown([fake(auto=1.25), fake(auto=1.5, dense=9.0)])
    assert page.count("| tiny | 17 |") == 3
    assert "CPU cores" in page


def test_charts_show_the_cells_that_differ_in_their_axis_alone(tmp_path):
    results = [fake(host=f"vit@{size}", tokens=size, auto=1.1 + size / 1000, dense=9.0) for size in (50, 197, 785)]
    results += [fake(host="vit@197", tokens=197, block=str(width), width=width, auto=1.3) for width in (128, 256)]
    title, series = by_tokens(results)
    assert title.startswith("vit, tiny block, 64 wide, batch 3")
    assert [x for x, _ in series["train", "auto"]] == [50, 197, 785]
    assert series["train", "dense"][0][1].median == 9.0
    title, series = by_width(results)
    assert title.startswith("vit@197")
    assert [x for x, _ in series["train", "auto"]] == [64, 128, 256]
    written = write_figures(results, tmp_path)
    assert [path.name for path in written] == ["cost_tokens.png", "cost_width.png"]
    for path in written:
        assert path.read_bytes().startswith(b"\x89PNG")
        assert path.stat().st_size > 10_000
    assert write_figures([], tmp_path / "none") == []
    assert write_figures(results[:1], tmp_path / "none") == []


# --- explain


@pytest.mark.parametrize("phase", ["train", "eval"])
def test_explain_shows_the_chosen_plan_and_its_counts(phase):
    explained = explain_cell(replace(CELL, phase=phase), rounds=3, seconds=0.0)
    (layer,) = explained.layers
    arm = make_arm(replace(CELL, phase=phase), "auto", make_block("tiny"))
    chosen = layer.chosen()
    assert str(chosen.plan) in (chosen_plan(arm, replace(CELL, phase=phase)), chosen.name)
    assert layer.problem.folds_ready is (phase == "eval")
    for one in layer.candidates:
        plan, posed = one.plan, layer.problem
        if plan is None:
            plan, posed = LayerPlan(), replace(posed, reads=17)
        assert one.multiply_adds == sum(op.multiply_adds for op in operations(plan, posed))
        assert one.measured is not None
    assert [one.expected for one in layer.candidates] == sorted(one.expected for one in layer.candidates)
    text = describe(explained)
    assert sum(text_line.startswith("> ") for text_line in text.splitlines()) == 1
    assert f"Chosen: {chosen.name}." in text
    assert "dense: the whole block on every token" in text
    assert "1 of 17 tokens are read" in text


def test_explain_counts_the_host_without_the_graft():
    explained = explain_cell(CELL, rounds=3, seconds=0.0)
    layer = 17 * (12 * 48 * 48) + 2 * 17 * 17 * 48
    assert explained.host_multiply_adds == 2 * layer + 16 * 3 * 64 * 48 + 48 * 7
    (layer_,) = explained.layers
    forward = sum(op.count * op.m * op.k * op.n for op in operations(layer_.chosen().plan, layer_.problem))
    assert explained.graft_multiply_adds == (forward + 3 * 1 * 64 * 48) // 3


def test_following_a_plan_runs_it_and_leaves_the_graft_as_it_was():
    model = lmgraft.graft(make_vit(), make_block("tiny"))
    inserted = find_graft(model)
    plan = LayerPlan("narrow", "folded", "folded", "absorbed")
    with torch.no_grad(), following(inserted, [plan]), observed(inserted) as calls:
        folded = model(images())
    assert calls[0].problems[0].reads == 1
    with torch.no_grad(), following(inserted, None):
        dense = model(images())
    assert relative_error(folded, dense) < 1e-5
    assert inserted.config.form == "auto"
    assert not {"plan", "problems"} & inserted.__dict__.keys()
    assert not inserted._forward_pre_hooks


def test_explain_a_saved_model(tmp_path, llama_folder):
    spec = {"factory": "timm", "name": "vit_tiny_patch16_224", "kwargs": VIT}
    model = lmgraft.graft(timm.create_model("vit_tiny_patch16_224", **VIT), str(llama_folder), host_spec=spec)
    lmgraft.save_pretrained(model, tmp_path / "saved")
    explained = explain_folder(tmp_path / "saved", replace(CELL, phase="eval"), rounds=3, seconds=0.0)
    assert explained.layers[0].problem.config.dim == 32
    assert "VisionTransformer" in describe(explained)


def test_explain_says_why_the_planner_was_not_asked():
    explained = explain_cell(replace(CELL, forms=(PLAIN, "dense")), rounds=3, seconds=0.0)
    assert explained.layers == []
    assert "form='dense' was asked for" in describe(explained)
    assert explained.graft_multiply_adds > 17 * 3 * 64 * 96


@pytest.mark.parametrize("arm", ["mlp", "mlp_only"])
def test_explain_says_of_a_block_that_mixes_no_tokens_that_it_is_computed_as_it_is(arm, llama_folder):
    model = timm.create_model("vit_tiny_patch16_224", **VIT)
    graft_arm(model, arm, GraftConfig(llm=str(llama_folder)), seed=0)
    cell = replace(CELL, phase="eval")
    draw = hosts.image_draw(model)
    explained = _explain(Arm(model=model, draw=draw, step=make_step(model, draw, cell)), cell, 3, 0.0)
    assert explained.layers == []
    assert "nothing in this block mixes tokens" in describe(explained)


# --- the command


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--explain", "--batch", "1", "2"], "give one"),
        (["--device", "tpu9"], "is not here"),
        (["--forms", "fast"], "'fast' is not known"),
        (["--batch", "0"], "holds no sample"),
        (["--hosts", "vit_tinny"], "no model"),
        (["--blocks", "nowhere.gguf"], "nowhere.gguf"),
        (["--explain", "nowhere"], "nowhere"),
    ],
)
def test_mistakes_leave_nothing(capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert main(["bench", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_explain_refuses_what_does_not_fit(monkeypatch):
    monkeypatch.setattr("lmgraft.studies.bench.explain.total_memory", lambda _: GIB // 8)
    with pytest.raises(LmgraftError, match="70 % of memory"):
        explain_cell(CELL)
    assert total_memory() > GIB // 8


@pytest.mark.long
def test_the_command_in_processes_of_its_own(capsys, tmp_path):
    wanted = ["--hosts", "vit-t@32", "--blocks", "smollm2-135m", "--batch", "1", "--phase", "eval"]
    assert main(["bench", *wanted, "--rounds", "3", "--seconds", "1", "--out", str(tmp_path)]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bench.json", "bench.md"]
    (result,) = read_results(tmp_path)
    assert result.peaks["auto"] > result.block_bytes
    assert 0.5 < result.memory_ratio("auto") < 1.3
    out = capsys.readouterr().out
    assert "vit_tiny_patch16_224@32" in out
    assert "written:" in out
