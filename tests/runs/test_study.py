"""Running studies: common random numbers bit by bit, only what is missing, and nothing compared that does not fit."""

import io
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from lasting import assert_same_run, interrupt
from PIL import Image
from studying import STUDY, Here, no_executor, run_here, study_of, without_flops

from lmgraft import records
from lmgraft.analysis.items import MetricValue
from lmgraft.analysis.verdict import CHANGES, Finding
from lmgraft.data.image.toy import draw
from lmgraft.errors import LmgraftError, RecipeError, RunError
from lmgraft.recipes import load_recipe, read_result, train_run
from lmgraft.records import only_one
from lmgraft.studies.engine.missing import Done
from lmgraft.studies.engine.runs import read_finished, state_of
from lmgraft.studies.robustness.run import robustness_config
from lmgraft.studies.study import checks
from lmgraft.studies.study.assemble import best_rate
from lmgraft.studies.study.facts import read_facts
from lmgraft.studies.study.failed import failures
from lmgraft.studies.study.read import read_study
from lmgraft.studies.study.run import make_cells, missing_commands, summarise
from lmgraft.training.items import FILE as ITEMS
from lmgraft.training.items import read_items

RUNS = [f"{arm}/seed{seed}" for seed in (0, 1) for arm in ("plain", "llm", "random_frozen")]


@pytest.fixture(autouse=True)
def _without_flops(monkeypatch):
    without_flops(monkeypatch)


@pytest.fixture
def study(recipe_file):
    return study_of(recipe_file)


@pytest.fixture
def out(tiny_study, tmp_path):
    """A copy of the finished study."""
    shutil.copytree(tiny_study[0], tmp_path / "out")
    return tmp_path / "out"


def edit(file, change):
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def test_arms_of_a_seed_share_initial_tensors_batches_and_mixing(tiny_study):
    folder, watch = tiny_study
    assert sorted(watch.weights) == sorted(RUNS)
    for seed in (0, 1):
        plain = watch.weights[f"plain/seed{seed}"]
        for arm in ("llm", "random_frozen"):
            mine = watch.weights[f"{arm}/seed{seed}"]
            assert {name: mine[name] for name in plain} == plain
            assert set(mine) - set(plain) == {"graft.mapper_in.weight", "graft.mapper_out.weight"}
            assert mine == watch.weights[f"llm/seed{seed}"]  # the mappers too
            assert watch.batches[f"{arm}/seed{seed}"] == watch.batches[f"plain/seed{seed}"]
        assert len(watch.batches[f"plain/seed{seed}"]) == 4
    assert watch.weights["plain/seed0"] != watch.weights["plain/seed1"]
    assert not set(watch.batches["plain/seed0"]) & set(watch.batches["plain/seed1"])
    encoders = [records.read_json(folder / "runs" / run / "run.json")["encoder"]["digest"] for run in RUNS]
    assert len(set(encoders[:3])) == len(set(encoders[3:])) == 1
    assert encoders[0] != encoders[3]


def test_a_run_of_a_study_is_what_lmgraft_train_makes(tiny_study, recipe_file, tmp_path):
    recipe = load_recipe(str(recipe_file), ["--arm", "llm", "--seed", "1", "--train.epochs", "1"])
    train_run(recipe, tmp_path / "run", progress="none")
    mine, theirs = tiny_study[0] / "runs" / "llm" / "seed1", tmp_path / "run"
    assert_same_run(mine, theirs)
    for name, values in read_items(mine).items():
        np.testing.assert_array_equal(values, read_items(theirs)[name])
    assert (mine / "config.yaml").read_text() == (theirs / "config.yaml").read_text()


def changes_in(result):
    return [f for f in result.findings if f.kind in CHANGES]


def test_the_result_is_of_the_runs_and_reads_back(tiny_study, study):
    folder, _ = tiny_study
    result = read_study(folder)
    assert result == read_study(folder / "results.json")
    assert (result.name, result.seeds, result.test_items, result.missing) == ("tiny", [0, 1], 60, [])
    assert [arm.label for arm in result.arms] == ["plain", "llm", "random_frozen"]
    for arm in result.arms:
        accuracies = {s: read_result(folder / "runs" / arm.label / f"seed{s}").metrics["accuracy"] for s in (0, 1)}
        assert arm.values == pytest.approx(accuracies)
        assert list(arm.val_values) == [0.003]
    assert [(c.arm, c.reference) for c in result.contrasts] == [("llm", "plain"), ("llm", "random_frozen")]
    assert [(c.arm, c.reference) for c in result.exploratory] == [("random_frozen", "plain")]
    assert len({b.name for b in result.breakdown}) == 10
    assert "few seeds planned" in {f.kind for f in result.findings}
    assert result.verdict
    assert result.notes
    assert study.yaml == (folder / "study.yaml").read_text()


def test_nothing_is_trained_again(out, study):
    before = {run: (out / "runs" / run / "result.json").stat().st_mtime_ns for run in RUNS}
    result, _, said = run_here(study, out, executor=no_executor)
    assert said == ["runs: 6 in all, 6 done before, 0 to do"]
    assert before == {run: (out / "runs" / run / "result.json").stat().st_mtime_ns for run in RUNS}
    assert result.arms == read_study(out).arms


def test_a_seed_and_an_arm_are_added_later_and_it_is_said(out, recipe_file):
    more = study_of(recipe_file, "--seeds", "3", "--arms", "plain,llm,random_frozen,mlp")
    result, trained, said = run_here(more, out)
    assert trained == [
        "mlp, seed 0", "mlp, seed 1", "plain, seed 2", "llm, seed 2", "random_frozen, seed 2", "mlp, seed 2",
    ]  # fmt: skip
    assert said[-1].startswith("[6/6] mlp, seed 2: done in")
    assert said[-1].endswith("nothing left")
    assert result.seeds == [0, 1, 2]
    changed = {f.kind: f for f in changes_in(result)}
    assert (changed["seeds changed"].before, changed["seeds changed"].now) == (2, 3)
    assert changed["arms added"].names == ("mlp",)
    again, _, _ = run_here(more, out, executor=no_executor)
    assert again.notes == result.notes  # once, and for ever


def test_a_plan_that_is_changed_after_the_results_is_noted(out, recipe_file):
    changed = study_of(recipe_file, "--metric", "nll", "--contrasts", "[[llm, plain]]")
    result, _, _ = run_here(changed, out, executor=no_executor)
    changed = {f.key: (f.before, f.now) for f in changes_in(result)}
    assert changed["metric"] == ("accuracy", "nll")
    assert "contrasts" in changed
    nll = {s: float(read_items(out / "runs" / "llm" / f"seed{s}")["nll"].mean()) for s in (0, 1)}
    assert next(arm for arm in result.arms if arm.label == "llm").values == pytest.approx(nll)


def test_a_launch_that_is_refused_leaves_no_trace(out, recipe_file, study):
    shutil.rmtree(out / "runs" / "plain" / "seed0")
    edit(out / "runs" / "llm" / "seed1" / "run.json", lambda r: r["data"].update(name="cifar"))
    before = (out / "study.yaml").read_text()
    for refused in (lambda s: run_here(s, out, executor=no_executor), lambda s: summarise(s, out)):
        with pytest.raises(RunError, match="the data differs"):
            refused(study_of(recipe_file, "--metric", "nll"))
        assert not (out / "changes.json").exists()
        assert (out / "study.yaml").read_text() == before
    with only_one(out / ".study.lock", "it"), pytest.raises(RunError, match="another process is at the study"):
        summarise(study, out)


@pytest.mark.long
def test_another_spelling_and_other_workers_are_the_same_study(out, recipe_file):
    text = STUDY.replace("overrides: {{train.epochs: 1}}", "question: Does it?")
    options = ["--train.epochs=1", "--data.num_workers", "1", "--train.log_every=7"]
    result, _, _ = run_here(study_of(recipe_file, *options, text=text), out, executor=no_executor)
    assert result.question == "Does it?"


def test_another_study_in_the_folder_is_refused(out, recipe_file):
    before = (out / "study.yaml").read_text()
    for options in (["--train.epochs", "3"], ["--optim.lr=0.1"], ["--data.init_args.pad=1"]):
        with pytest.raises(RunError, match="another recipe; different now"):
            run_here(study_of(recipe_file, *options), out, executor=no_executor)
    other = study_of(recipe_file, "--train.epochs", "3", text=STUDY.replace("plain, llm, random_frozen", "mlp, linear"))
    with pytest.raises(RunError, match=r"holds another study; different now: train\.epochs"):
        run_here(other, out, executor=no_executor)
    other = study_of("image/fashion_vit_debug", text=STUDY.replace("plain, llm, random_frozen", "mlp, linear"))
    with pytest.raises(RunError, match="holds another study; different now: recipe is"):
        run_here(other, out, executor=no_executor)
    assert (out / "study.yaml").read_text() == before


@pytest.mark.parametrize("content", ["arms: [", "5", "arms: [plain]", "\x00"])
def test_a_study_yaml_that_is_none(out, study, content):
    (out / "study.yaml").write_text(content)
    with pytest.raises(RunError, match=r"study\.yaml is (damaged|no study)"):
        run_here(study, out, executor=no_executor)


def test_changes_that_an_older_version_wrote_as_sentences_stay(out, study):
    records.write_json(out / "changes.json", ["After results had been read, margin is 0.01, was 0.005."])
    [change] = changes_in(summarise(study, out))
    assert change.kind == "stated change"
    assert change.key in read_study(out).notes


@pytest.mark.parametrize(
    "content", ["", "null", '["a', "[1, 2]", "{}", '[{"kind": "helps"}]', '[{"kind": "arms added", "x": 1}]']
)
def test_a_list_of_changes_that_is_none_is_not_to_be_thrown_away(out, study, content):
    (out / "changes.json").write_text(content)
    with pytest.raises(RunError, match=r"(?s)changes\.json is damaged.*belongs to the results"):
        run_here(study, out, executor=no_executor)
    with pytest.raises(RunError, match=r"changes\.json is damaged"):
        summarise(study, out)


def test_a_folder_of_compare_is_refused(out, study):
    (out / "arms.json").write_text("{}")
    with pytest.raises(RunError, match=r"holds a comparison by lmgraft\.compare"):
        run_here(study, out, executor=no_executor)


@pytest.mark.parametrize("damage", ["", '{"data": 1', "{}"])
def test_a_record_that_is_cut_short_is_made_again(out, study, tiny_study, damage):
    run = out / "runs" / "llm" / "seed1"
    (run / "run.json").write_text(damage)
    result, trained, said = run_here(study, out)
    assert trained == ["llm, seed 1"]
    assert any("run.json" in line and "set aside" in line for line in said)
    assert (run / "run.json.damaged").read_text() == damage
    assert_same_run(run, tiny_study[0] / "runs" / "llm" / "seed1")
    assert result.arms[1].values == read_study(tiny_study[0]).arms[1].values


def test_a_recipe_of_a_run_that_is_cut_short(out, study):
    file = out / "runs" / "llm" / "seed1" / "config.yaml"
    file.write_text(file.read_text()[:150])
    with pytest.raises(RunError, match=r"(?s)delete the folder to train this run again"):
        run_here(study, out, executor=no_executor)


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ("{corruptions: [fogg]}", "there is no corruption 'fogg'"),
        ("{corruptions: []}", "names none"),
        ("{corruptions: [fog, fog]}", "names one twice"),
        ("{limit: 0}", "limit 0 must be at least 1"),
        ("{seed: -1}", "must not be negative"),
    ],
)
def test_corruptions_that_do_not_fit_are_said_before_anything_is_trained(recipe_file, tmp_path, wanted, said):
    with pytest.raises(LmgraftError, match=said):
        run_here(study_of(recipe_file, "--robustness", wanted), tmp_path / "out", executor=no_executor)
    assert not (tmp_path / "out").exists()


def test_one_block_under_two_numbers_is_refused(recipe_file, tmp_path):
    arms = "{plain: {}, last: {arm: llm, graft.layer: -1}, third: {arm: llm, graft.layer: 2}}"
    study = study_of(recipe_file, "--arms", arms)
    with pytest.raises(RecipeError, match="arms last and third are the same: layer 2 of 3"):
        run_here(study, tmp_path / "out", executor=no_executor)


def test_a_file_where_the_folder_would_be(out, study):
    with pytest.raises(RunError, match="a file is in the way"):
        run_here(study, out / "study.yaml", executor=no_executor)


def test_a_recipe_of_a_run_that_is_no_text(out, study):
    (out / "runs" / "llm" / "seed1" / "config.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RunError, match=r"config\.yaml is damaged"):
        run_here(study, out, executor=no_executor)


def test_an_interrupted_run_goes_on_to_the_same_end(out, study, tiny_study):
    run = make_cells(study, out)[1]
    shutil.rmtree(run.folder)
    interrupt(run.load(), run.folder, 2)
    _, trained, _ = run_here(study, out)
    assert trained == ["llm, seed 0"]
    assert_same_run(run.folder, tiny_study[0] / "runs" / "llm" / "seed0")


def as_npy(array):
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("file", "damage", "said"),
    [
        ("result.json", lambda f: f.write_bytes(f.read_bytes()[:100]), r"result\.json is not readable JSON"),
        ("result.json", lambda f: f.write_text("{}"), "does not hold a result"),
        (ITEMS, lambda f: f.write_bytes(f.read_bytes()[:300]), "npz is damaged"),
        (ITEMS, lambda f: f.write_bytes(b""), "npz is damaged"),
        (ITEMS, lambda f: f.write_bytes(as_npy(np.zeros(60))), "npz is damaged"),
        (ITEMS, lambda f: np.savez(f, label=np.zeros(60)), "has no column index"),
        (ITEMS, lambda f: f.unlink(), "has no test_items"),
    ],
)
def test_a_result_cut_short_is_seen(out, study, file, damage, said):
    cell = make_cells(study, out)[4]
    damage(cell.folder / file)
    with pytest.raises(RunError, match=said):
        read_finished(cell.folder)
    with pytest.raises(RunError, match=said):  # the report alone says it too
        summarise(study, out)
    assert state_of(cell, lambda _: None, dry_run=True) == "begun"
    assert (cell.folder / "result.json").exists()  # a dry run sets nothing aside
    lines = []
    assert state_of(cell, lines.append) == "begun"
    assert "set aside" in lines[0]
    assert not (cell.folder / "result.json").exists()


def test_a_run_whose_result_is_cut_short_is_evaluated_again(out, study, tiny_study):
    file = out / "runs" / "llm" / "seed1" / "result.json"
    file.write_bytes(file.read_bytes()[:100])
    result, trained, _ = run_here(study, out)
    assert trained == ["llm, seed 1"]
    assert_same_run(file.parent, tiny_study[0] / "runs" / "llm" / "seed1")
    assert result.arms[1].values == read_study(tiny_study[0]).arms[1].values


def test_items_of_another_run_are_seen(out, study):
    shutil.copyfile(out / "runs" / "plain" / "seed0" / ITEMS, out / "runs" / "llm" / "seed0" / ITEMS)
    edit(out / "runs" / "llm" / "seed0" / "result.json", lambda r: r["metrics"].update(accuracy=0.123))
    with pytest.raises(RunError, match=r"the mean accuracy is 0\..*, in result\.json 0\.123"):
        summarise(study, out)


def test_labels_in_another_order_are_seen(out, study):
    file = out / "runs" / "llm" / "seed0" / ITEMS
    items = read_items(file.parent)
    np.savez(file, **{name: values[::-1] for name, values in items.items()})
    with pytest.raises(RunError, match="the test items or their order differs"):
        summarise(study, out)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda r: r["data"].update(name="cifar"), "the data differs"),
        (lambda r: r["data"]["sizes"].update(train=99), "the data differs"),
        (lambda r: r["block"].update(digest="00"), "the LLM's block of arm llm differs"),
        (lambda r: r["encoder"].update(digest="00"), "initial weights of seed 1 differs"),
        (lambda r: r["environment"]["versions"].update(torch="1.0"), "the version of torch differs"),
        (lambda r: r.update(selection="test"), "llm, seed 1 chose its epoch by the test data"),
    ],
)
def test_runs_that_do_not_belong_together_are_refused_before_anything_is_trained(out, study, change, said):
    edit(out / "runs" / "llm" / "seed1" / "run.json", change)
    shutil.rmtree(out / "runs" / "plain" / "seed0")  # something to train
    with pytest.raises(RunError, match=said):
        run_here(study, out, executor=no_executor)


def test_another_commit_is_a_note_and_other_versions_may_be_allowed(out, study):
    file = out / "runs" / "llm" / "seed1" / "run.json"
    edit(file, lambda r: r["environment"].update(git_commit="abc"))
    assert [len(f.names) for f in summarise(study, out).findings if f.kind == "several commits"] == [2]
    edit(file, lambda r: r["environment"]["versions"].update(torch="1.0"))
    assert summarise(study, out, allow_difference=True).contrasts


def test_versions_are_compared_with_this_machine_before_training(out, study, monkeypatch):
    shutil.rmtree(out / "runs" / "plain" / "seed0")
    here = records.environment()
    monkeypatch.setattr(checks.records, "environment", lambda *_: here | {"versions": here["versions"] | {"timm": "9"}})
    with pytest.raises(RunError, match=r"made with other versions: timm .* there, 9 here"):
        run_here(study, out, executor=no_executor)


def test_other_data_are_seen_before_training(out, study, fashion_root, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(fashion_root, other)
    for half in ("images-idx3", "labels-idx1"):
        shutil.copyfile(other / f"t10k-{half}-ubyte.gz", other / f"train-{half}-ubyte.gz")
    shutil.rmtree(out / "runs" / "plain" / "seed0")
    moved = replace(study, arguments=(f"--data.root={other}", "--data.val_size=20"))
    with pytest.raises(RunError, match="the data are not those of the runs that are finished"):
        run_here(moved, out, executor=no_executor)


def test_a_root_or_a_block_that_is_missing_is_said_before_training(recipe_file, tmp_path):
    for option, said in (
        ("--data.root=/nowhere", "there is no such folder"),
        ("--graft.llm=/nowhere/llm", "arm llm: .*/nowhere/llm"),
        ("--graft.layer=7", "arm llm: .*7"),
        ("--train.devices=2", "one process on one device"),
        ("--backbone.name=vit_nowhere", "vit_nowhere"),
    ):
        with pytest.raises(LmgraftError, match=said):
            run_here(study_of(recipe_file, option), tmp_path / "new", executor=no_executor)
    with pytest.raises(AssertionError, match="a training was begun"):  # mended, in the same folder
        run_here(study_of(recipe_file), tmp_path / "new", executor=no_executor)


def test_a_recipe_whose_epoch_is_chosen_by_the_test_images_is_refused(tmp_path):
    rng = np.random.default_rng(0)
    for split, number in (("train", 8), ("val", 2)):
        for label in range(2):
            folder = tmp_path / "photos" / split / f"class{label}"
            folder.mkdir(parents=True)
            for i in range(number):
                Image.fromarray(draw(11 * label, 32, rng)).save(folder / f"{i}.png")
    options = [f"--data.root={tmp_path / 'photos'}", "--data.val_size=0", "--data.num_workers=0", "--data.batch_size=4"]
    with pytest.raises(RunError, match="chooses its best epoch by the test items"):
        run_here(study_of("image/photos_scratch", *options), tmp_path / "out", executor=no_executor)
    options[1] = "--data.val_size=0.3"
    study = study_of("image/photos_scratch", *options, "--metric=top5")
    with pytest.raises(RecipeError, match="no metric 'top5'"):
        run_here(study, tmp_path / "out", executor=no_executor)


def test_two_studies_at_once_in_one_folder(out, study):
    with only_one(out / ".study.lock", "it"), pytest.raises(RunError, match="another process is at the study in"):
        run_here(study, out, executor=no_executor)
    shutil.rmtree(out / "runs" / "plain" / "seed0")
    with (
        only_one(out / "runs" / "plain" / ".seed0.lock", "it"),
        pytest.raises(RunError, match=r"(?s)1 of 6 runs failed:.*plain, seed 0: another process is at run"),
    ):
        run_here(study, out)


def test_runs_are_used_again_from_another_folder(out, study, recipe_file, tmp_path):
    damaged = out / "runs" / "llm" / "seed0" / "result.json"
    damaged.write_bytes(damaged.read_bytes()[:50])
    (out / "bench").mkdir()
    (out / "bench" / "result.json").write_text("{}")  # another command's
    more = study_of(recipe_file, "--seeds", "[0, 1]", "--arms", "plain,llm,mlp")
    result, trained, said = run_here(more, tmp_path / "new", reuse_from=[out])
    assert trained == ["llm, seed 0", "mlp, seed 0", "mlp, seed 1"]
    assert sum("taken from" in line for line in said) == 3
    assert any("is not used again" in line and "llm" in line for line in said)
    assert [arm.values for arm in result.arms[:2]] == [arm.values for arm in read_study(out).arms[:2]]
    assert not (tmp_path / "new" / "runs" / "plain" / "seed0" / "checkpoints").exists()
    with pytest.raises(RunError, match="does not exist"):
        run_here(more, tmp_path / "new", reuse_from=[tmp_path / "none"])
    robust = study_of(recipe_file, "--arms", "plain,llm,mlp", "--robustness.limit", "4")
    with pytest.raises(RunError, match=r"has no best\.ckpt"):
        run_here(robust, tmp_path / "new", executor=no_executor)


def test_a_plan_that_was_changed_is_not_laundered_by_using_its_runs_again(out, recipe_file, tmp_path):
    run_here(study_of(recipe_file, "--metric", "nll"), out, executor=no_executor)
    study, new = study_of(recipe_file, "--metric", "nll"), tmp_path / "new"
    wrong = replace(study, arguments=("--data.val_size=10",))
    for refused, text in ((wrong, "new"), (replace(study, robustness=robustness_config({"limit": 4})), "new")):
        with pytest.raises((RunError, AssertionError)):
            run_here(refused, tmp_path / text, executor=no_executor, reuse_from=[out / "runs" / "llm"])
        assert not list(new.rglob("result.json"))  # nothing is copied where something is refused
        shutil.rmtree(new)
    result, _, _ = run_here(study, new, executor=no_executor, reuse_from=[out])
    others, *changed = changes_in(result)
    assert (others.kind, others.names) == ("runs of others", ("out",))
    assert ("metric", "accuracy", "nll") in [(f.key, f.before, f.now) for f in changed]
    again, _, _ = run_here(study, new, executor=no_executor)
    assert again.notes == result.notes


def test_seeds_that_failed_are_kept_in_mind(out, recipe_file):
    for arm in ("plain", "llm", "random_frozen"):
        shutil.copytree(out / "runs" / arm / "seed1", out / "runs" / arm / "seed2")  # stands in for a third seed
        config = out / "runs" / arm / "seed2" / "config.yaml"
        config.write_text(config.read_text().replace("seed: 1", "seed: 2", 1))
    shutil.rmtree(out / "runs" / "llm" / "seed1")
    three = study_of(recipe_file, "--seeds", "3")

    def fails(jobs, say):
        for job in jobs:
            yield Done(cell=job, seconds=1.0, error="the loss became nan")

    with pytest.raises(RunError, match="1 of 9 runs failed"):
        run_here(three, out, executor=fails)
    assert records.read_json(out / "failed.json") == {"llm, seed 1": "the loss became nan"}
    result = summarise(three, out)
    assert [f.names for f in result.findings if f.kind == "failed runs"] == [("llm, seed 1",)]
    assert result.verdict[-1] in result.notes
    finished, trained, _ = run_here(three, out)
    assert trained == ["llm, seed 1"]
    assert not (out / "failed.json").exists()
    assert not [f for f in finished.findings if f.kind == "failed runs"]


def test_a_rate_at_which_runs_failed_is_marked(recipe_file, tmp_path):
    cells = make_cells(study_of(recipe_file, "--learning_rates", "[0.003, 1e30]"), tmp_path)
    failed = {cell.name: "nan" for cell in cells if cell.learning_rate == 1e30 and cell.arm == "llm"}
    chosen = dict.fromkeys(("plain", "llm", "random_frozen"), 0.003)
    (found,) = failures(cells, failed, chosen)
    assert found == Finding(kind="failed rates", names=("llm, seed 0, lr 1e+30", "llm, seed 1, lr 1e+30"))
    assert [f.kind for f in failures(cells, failed, chosen | {"llm": 1e30})] == ["failed runs"]


def test_a_failed_run_is_said_and_the_others_go_on(recipe_file, tmp_path):
    text = STUDY.replace("[plain, llm, random_frozen]", "{{plain: {{}}, hot: {{arm: llm, optim.lr: 1e30}}}}")
    executor = Here()
    with pytest.raises(RunError, match=r"(?s)2 of 4 runs failed:.*hot, seed 0: [^;]*(nan|inf|finite).*--report-only"):
        run_here(study_of(recipe_file, text=text), tmp_path / "out", executor=executor)
    assert executor.names == ["plain, seed 0", "hot, seed 0", "plain, seed 1", "hot, seed 1"]
    kept = [json.loads(line)["run"] for line in (tmp_path / "out" / "runs.jsonl").read_text().splitlines()]
    assert kept == ["plain/seed0", "plain/seed1"]  # before anything is compared
    with pytest.raises(RunError, match="0 finished seeds in common"):
        summarise(study_of(recipe_file, text=text), tmp_path / "out")
    assert list(records.read_json(tmp_path / "out" / "failed.json")) == ["hot, seed 0", "hot, seed 1"]


def test_an_executor_that_says_nothing_of_a_run(out, study):
    shutil.rmtree(out / "runs" / "plain" / "seed0")
    with pytest.raises(RunError, match="plain, seed 0: it was not run to its end"):
        run_here(study, out, executor=lambda *_: iter(()))


def test_a_report_of_what_is_there(out, study):
    shutil.rmtree(out / "runs" / "random_frozen" / "seed0")
    with pytest.raises(RunError, match="random_frozen have 1 finished seeds in common"):
        summarise(study, out)
    only = replace(study, contrasts=(("llm", "plain"),))
    result = summarise(only, out)
    assert result.missing == ["random_frozen, seed 0"]
    assert [arm.label for arm in result.arms] == ["plain", "llm"]
    with pytest.raises(RunError, match="no run of this study is finished"):
        summarise(study, out / "none")


@pytest.mark.slow
def test_corruptions_are_compared_at_the_severities_that_all_runs_of_a_contrast_were_shown(out, study):
    def cell(correct, **conditions):
        return {"correct": correct, "total": 10, "conditions": {"limit": 10, "precision": "auto"} | conditions}

    for i, run in enumerate(RUNS):
        cells = {f"corruptions/fog/{severity}": cell(9 - 2 * severity + (run.startswith("llm"))) for severity in (1, 2)}
        cells["corruptions/snow/1"] = cell(i)
        cells |= {"clean": cell(9), "imagenet_c/fog/1": cell(0)}
        records.write_json(out / "runs" / run / "robustness.json", {"weights": "w", "environment": {}, "cells": cells})
    edit(out / "runs" / "llm" / "seed1" / "robustness.json", lambda c: c["cells"].pop("corruptions/fog/2"))
    other = {"corruptions/snow/1": cell(3, limit=5), "corruptions/fog/1": cell(8, precision="bf16-mixed")}
    edit(out / "runs" / "llm" / "seed0" / "robustness.json", lambda c: c["cells"].update(other))

    result = summarise(study, out)
    found = {(b.name, b.arm, b.reference): b.mean for b in result.breakdown if b.kind == "corruption"}
    # Averages over severities that a run happens to have would give 2 points for it.
    assert found == {("fog", "llm", reference): pytest.approx(0.1) for reference in ("plain", "random_frozen")}
    [left_out] = [f for f in result.findings if f.kind == "cells left out" and f.pair == ("llm", "plain")]
    assert (left_out.names, left_out.counts) == (("fog", "snow"), {"left_out": 2, "all": 3})

    file = out / "runs" / "llm" / "seed0" / "robustness.json"
    for damage in (lambda c: c.pop("cells"), lambda c: c["cells"].update({"corruptions/fog/1": {}})):
        before = file.read_text()
        edit(file, damage)
        with pytest.raises(RunError, match=r"robustness\.json is damaged"):
            summarise(study, out)
        file.write_text(before)


@pytest.mark.long
def test_each_arm_takes_the_rate_that_the_held_out_images_choose(recipe_file, tmp_path):
    text = STUDY.replace("[plain, llm, random_frozen]", "[plain, llm]")
    options = ["--learning_rates", "[0.003, 1e-6, 1e30]"]  # the last one makes the loss NaN
    study = study_of(recipe_file, *options, text=text)
    result, trained, said = run_here(study, tmp_path)
    assert len(trained) == 12
    assert any("4 of 12 runs failed; their learning rates are out" in line for line in said)
    assert len(result.missing) == 4
    assert [len(f.names) for f in result.findings if f.kind == "failed rates"] == [4]
    assert not any(f.kind == "failed runs" for f in result.findings)
    facts, _ = read_facts(study, make_cells(study, tmp_path))
    for arm in result.arms:
        means = {rate: np.mean(list(values.values())) for rate, values in arm.val_values.items()}
        assert set(means) == {0.003, 1e-6}
        assert means[arm.learning_rate] == max(means.values())
        own = [fact for fact in facts if fact.arm == arm.label]
        values = [fact.measured.value for fact in own]
        shuffled = [
            replace(f, measured=MetricValue(value=v)) for f, v in zip(own, values[1:] + values[:1], strict=True)
        ]
        assert best_rate(shuffled) == arm.learning_rate  # the test results have no say


def test_seeds_of_their_own_choose_the_rate(recipe_file, tmp_path):
    text = STUDY.replace("[plain, llm, random_frozen]", "[plain, llm]")
    study = study_of(recipe_file, "--learning_rates", "[0.003, 1e-6]", "--rate_seeds", "[7]", text=text)
    assert all("seed7" in command for command in missing_commands(study, tmp_path))
    result, trained, _ = run_here(study, tmp_path)
    assert trained[:4] == [f"{arm}, seed 7, lr {rate:g}" for arm in ("plain", "llm") for rate in (0.003, 1e-6)]
    rates = {arm.label: arm.learning_rate for arm in result.arms}
    assert trained[4:] == [f"{arm}, seed {seed}, lr {rates[arm]:g}" for seed in study.seeds for arm in rates]
    for arm in result.arms:
        assert list(arm.values) == [0, 1]
        tried = {rate: values[7] for rate, values in arm.val_values.items()}
        assert arm.val_values == {rate: {7: value} for rate, value in tried.items()}
        assert len(tried) == 2
        assert tried[arm.learning_rate] == max(tried.values())
    assert (result.seeds, result.rate_seeds, result.missing) == ([0, 1], [7], [])
    packed = (tmp_path / "runs.jsonl").read_text().splitlines()
    assert len(packed) == len(trained)
    again, nothing, _ = run_here(study, tmp_path)
    assert (again.contrasts, nothing) == (result.contrasts, [])
    for folder in tmp_path.glob("runs/*/*/seed[01]"):
        shutil.rmtree(folder)
    (tmp_path / "runs.jsonl").unlink()
    with pytest.raises(RunError, match="only rates were tried"):
        summarise(study, tmp_path)


def test_seeds_that_are_planned_and_not_trained_were_not_looked_at(out, recipe_file):
    more = study_of(recipe_file, "--seeds", "3")
    result = summarise(more, out)
    assert len(result.missing) == 3
    assert not (out / "changes.json").exists()
    result, trained, _ = run_here(more, out)
    assert trained == [f"{arm}, seed 2" for arm in more.arms]
    assert [(f.kind, f.before, f.now) for f in changes_in(result)] == [("seeds changed", 2, 3)]


def test_results_that_are_none_are_refused(out):
    file = out / "results.json"
    whole = file.read_text()
    file.write_text(whole[: len(whole) // 2])
    with pytest.raises(RunError, match="not readable JSON"):
        read_study(out)
    for change, said in (
        (lambda r: r.pop("arms"), "has no 'arms'"),
        (lambda r: r.update(arms=3), r"results\.arms is 3"),
        (lambda r: r["arms"][0]["values"].update(x=1.0), "has the key 'x'"),
        (lambda r: r["arms"][0].update(mean="high"), r"arms\[0\]\.mean is 'high'"),
        (lambda r: r["contrasts"][0].update(outcome="great"), "outcome"),
        (lambda r: r["contrasts"][0].update(interval=[1.0]), "interval"),
        (lambda r: r.update(colour="red"), "'colour', which this version does not know"),
    ):
        file.write_text(whole)
        edit(file, change)
        with pytest.raises(RunError, match=f"no study's result of this version of lmgraft: .*{said}"):
            read_study(out)
    for text in ("[]", "3", "null"):
        file.write_text(text)
        with pytest.raises(RunError, match="no study's result"):
            read_study(out)
    with pytest.raises(RunError, match="is missing"):
        read_study(out / "none")
