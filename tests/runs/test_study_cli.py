"""`lmgraft study`: the plan before anything runs, and whole studies from the command line."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lasting import assert_same_run
from studying import STUDY, study_of, without_flops

from lmgraft.cli.main import main
from lmgraft.data.image.toy import write_toy_imagenet
from lmgraft.recipes import build_model
from lmgraft.studies import step_times
from lmgraft.studies.study.config import list_studies
from lmgraft.studies.study.estimate import plan
from lmgraft.studies.study.read import read_study
from lmgraft.studies.study.run import make_cells
from tiny import long_but


@pytest.mark.parametrize("name", long_but(list_studies(), "image/fashion_controls"))
def test_a_plan_of_every_debug_study(name, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["study", name, "--debug", "--dry-run", "--no-timing", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "planned contrasts: " in said
    assert "Nothing was started." in said
    assert not out.exists()


def test_a_plan_with_times_starts_and_writes_nothing(recipe_file, tmp_path, capsys, in_this_process):
    file = tmp_path / "mine.yaml"
    file.write_text(STUDY.format(recipe=recipe_file))
    assert main(["study", str(file), "--dry-run", "--out", str(tmp_path / "out"), "--seeds", "3"]) == 0
    said = capsys.readouterr().out
    assert "mine: Does the frozen LLM block help?" in said
    assert "In all about" in said
    assert "nothing was started" in said
    assert [path.name for path in tmp_path.iterdir()] == ["mine.yaml"]
    assert not in_this_process.names


def test_a_plan_counts_packed_runs_as_done(recipe_file, tiny_study, tmp_path, capsys):
    file, moved = tmp_path / "mine.yaml", tmp_path / "moved"
    file.write_text(STUDY.format(recipe=recipe_file))
    moved.mkdir()
    shutil.copyfile(tiny_study[0] / "runs.jsonl", moved / "runs.jsonl")
    assert main(["study", str(file), "--dry-run", "--no-timing", "--out", str(moved)]) == 0
    said = capsys.readouterr().out
    assert said.count("all done") == 3
    assert f"in {moved}" in said
    assert [path.name for path in moved.iterdir()] == ["runs.jsonl"]


def test_a_plan_says_once_why_arms_cannot_be_timed(recipe_file, tmp_path, capsys):
    file = tmp_path / "mine.yaml"
    overrides = f"{{train.epochs: 1, data.root: {tmp_path / 'nowhere'}}}"
    file.write_text(STUDY.format(recipe=recipe_file).replace("{train.epochs: 1}", overrides))
    assert main(["study", str(file), "--dry-run", "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    (reason,) = (line for line in said.splitlines() if line.startswith("Steps of "))
    assert "cannot be timed" in reason
    assert "nowhere" in reason
    assert said.count("What to do: ") == 1


def test_what_a_plan_says_of_an_arm(recipe_file, tiny_study, tmp_path):
    cells = make_cells(study_of(recipe_file), tmp_path)
    states = {cell: "done" if cell.arm == "plain" else "missing" for cell in cells}
    plain, llm, control = plan(cells, states, measure=True, say=lambda _: None)
    assert (plain.runs, plain.missing, plain.estimate, plain.why_not, plain.seconds) == (2, 0, None, "", 0.0)
    for row in (llm, control):
        assert (row.runs, row.missing) == (2, 2)
        assert row.estimate.seconds == pytest.approx(4 * row.estimate.step_seconds)  # 100 images, 24 a step, an epoch
        assert row.seconds == pytest.approx(2 * row.estimate.seconds)
    recorded = read_study(tiny_study[0]).arms[1].cost
    assert (llm.estimate.trained_params, llm.estimate.frozen_params) == (
        recorded.trained_params,
        recorded.frozen_params,
    )


@pytest.mark.parametrize(
    ("precision", "autocast", "weights"),
    [("32-true", None, "float32"), ("bf16-mixed", "bfloat16", "float32"), ("bf16-true", None, "bfloat16")],
)
def test_arms_are_timed_in_the_recipes_precision(recipe_file, tmp_path, monkeypatch, precision, autocast, weights):
    seen = set()

    def watched(recipe):
        model = build_model(recipe)

        def note(module, inputs):
            in_use = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None
            seen.add((in_use, next(module.parameters()).dtype))

        model.register_forward_pre_hook(note)
        return model

    monkeypatch.setattr(step_times, "build_model", watched)
    cells = make_cells(study_of(recipe_file, "--train.precision", precision, "--arms", "plain,llm"), tmp_path)
    rows = plan(cells, dict.fromkeys(cells, "missing"), measure=True, say=lambda _: None)
    assert [row.why_not for row in rows] == ["", ""]
    assert seen == {(autocast and getattr(torch, autocast), getattr(torch, weights))}


def test_an_arm_that_cannot_be_timed_says_why(recipe_file, tmp_path):
    cells = make_cells(study_of(recipe_file, "--llm", "/nowhere/llm"), tmp_path)
    rows = plan(cells, dict.fromkeys(cells, "missing"), measure=True, say=lambda _: None)
    assert rows[0].estimate is not None
    assert "/nowhere/llm" in rows[1].why_not
    assert rows[1].seconds is None


def test_a_plan_says_what_llms_are_missing(recipe_file, tmp_path, capsys):
    file = tmp_path / "mine.yaml"
    file.write_text(STUDY.format(recipe=recipe_file))
    assert main(["study", str(file), "--dry-run", "--no-timing", "--llm", "none.gguf"]) == 0
    said = capsys.readouterr().out
    assert "Missing: arm llm: the file 'none.gguf' is not there: it is a path seen from the working directory" in said
    assert "sources.md" in said


def test_mistakes_end_with_status_2(recipe_file, tmp_path, capsys):
    file = tmp_path / "mine.yaml"
    file.write_text(STUDY.format(recipe=recipe_file))
    wrong_arm = ["--arms", "{plain: {}, llm: {optim.no_such: 1}}", "--out", str(tmp_path / "none")]
    for options, said in (
        (["--dry-run"], "study"),
        (["image/fashon_controls"], "Did you mean"),
        ([str(file), "--seed", "3"], "give --seeds"),
        ([str(file), "--workers", "0"], "--workers 0 is no whole number"),
        ([str(file), "--reuse", str(tmp_path / "none"), "--dry-run"], "does not exist"),
        ([str(file), "--report-only", "--out", str(tmp_path / "none")], "no run of this study is finished"),
        ([str(file), "--train.epochs", "-1"], "train.epochs"),
        ([str(file), *wrong_arm], "arm llm: "),
        ([str(file), *wrong_arm, "--print-jobs"], "arm llm: "),
    ):
        assert main(["study", *options]) == 2
        assert said in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.yaml"]


def check_folder(out, arms, seeds):
    result = read_study(out)
    assert [arm.label for arm in result.arms] == arms
    assert result.seeds == seeds
    assert all(arm.cost.train_flops > arm.cost.eval_flops > 0 for arm in result.arms)
    assert [arm.cost.time.basis for arm in result.arms] == ["reference", *["steps"] * (len(arms) - 1)]
    assert result.verdict
    for name in ("report.html", "study.yaml", "tables/arms.csv", "figures/contrasts.svg", "flops.json", "times.json"):
        assert (out / name).stat().st_size
    return result


@pytest.mark.long
def test_controls_from_the_command_line(fashion_root, llama_folder, tmp_path, capsys, in_this_process):
    data = ["--data.root", str(fashion_root), "--data.verify=false", "--data.train_size=64", "--data.val_size=20"]
    command = ["study", "image/fashion_controls_debug", "--out", str(tmp_path), "--llm", str(llama_folder), *data]
    assert main(command) == 0
    arms = ["plain", "llm", "random_frozen", "shuffled", "mlp", "linear"]
    result = check_folder(tmp_path, arms, [0, 1])
    assert len(in_this_process.names) == 12
    assert len(result.contrasts) == 3
    assert "report.html" in capsys.readouterr().out
    before = (tmp_path / "results.json").read_text()
    assert main([*command, "--report-only"]) == 0
    assert (tmp_path / "results.json").read_text() == before
    assert main(["study", str(tmp_path / "study.yaml"), "--out", str(tmp_path)]) == 0  # its own record, the same study
    assert len(in_this_process.names) == 12


@pytest.mark.long
@pytest.mark.slow
def test_printed_commands_train_what_is_missing(recipe_file, tiny_study, tmp_path, capsys, monkeypatch):
    without_flops(monkeypatch)
    file, out = tmp_path / "tiny.yaml", tmp_path / "with a space"
    file.write_text(STUDY.format(recipe=recipe_file))
    shutil.copytree(tiny_study[0], out)
    study = ["study", str(file), "--out", str(out)]
    assert main([*study, "--print-jobs"]) == 0
    assert capsys.readouterr().out == ""
    missing = ("plain/seed0", "llm/seed1")
    for run in missing:
        shutil.rmtree(out / "runs" / run)
    assert main([*study, "--print-jobs"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert not [run for run in missing if (out / "runs" / run).exists()]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(first, shell=True, check=True, capture_output=True, env={**os.environ, "PATH": path})
    assert main(shlex.split(second)[1:]) == 0
    assert main([*study, "--report-only"]) == 0
    for run in missing:
        assert_same_run(out / "runs" / run, tiny_study[0] / "runs" / run)
    now, before = read_study(out), read_study(tiny_study[0])
    assert (now.contrasts, now.missing) == (before.contrasts, [])


@pytest.mark.long
def test_positions_on_a_toy_imagenet(llama_folder, tmp_path, monkeypatch, in_this_process):
    tree = write_toy_imagenet(tmp_path / "toy", train=2, size=32, suites=())
    monkeypatch.setattr("lmgraft.data.image.toy.write_toy_imagenet", lambda *_, **__: tree)  # the debug tree is larger
    small = [
        "--data.root",
        str(tree),
        "--data.num_workers=0",
        "--backbone.kwargs.patch_size=16",
        "--llm",
        str(llama_folder),
    ]
    fewer = ["--arms", "{plain: {}, tail_two: {arm: two_blocks, graft.at: tail}}", "--contrasts", "[[tail_two, plain]]"]
    out = tmp_path / "out"
    assert main(["study", "image/paper_position_debug", "--out", str(out), *small, *fewer]) == 0
    result = check_folder(out, ["plain", "tail_two"], [0, 1])
    assert len(result.arms[-1].block["layers"]) == 2
    assert result.test_items == 1000
