"""`lmgraft explore` without its page: one item of each family under several runs, at every choice."""

from __future__ import annotations

import asyncio
import html
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from image_trees import picture, write_folder
from video_trees import pictures_of

from lmgraft.analysis.activations import magnitude, scaled_to_one
from lmgraft.analysis.observe import observe
from lmgraft.errors import DataError, LmgraftError, RecipeError
from lmgraft.recipes import load_recipe
from lmgraft.recipes.build import build_task, set_up_data
from lmgraft.report.explore.page import _listening, guarded, shown
from lmgraft.report.explore.view import problem_html, view_html
from lmgraft.studies.analyze.look import Opened
from lmgraft.studies.explore import ATTENTION, LAST, Choice, Explorer

IMAGES = """
arm: llm
graft: {{llm: {llm}, layer: 1}}
backbone:
  name: vit_tiny_patch16_224
  kwargs: {{patch_size: 8, embed_dim: 32, depth: 2, num_heads: 2}}
data:
  class_path: lmgraft.data.image.image_files.ImageFiles
  init_args: {{root: {root}, img_size: 32, batch_size: 4, eval_batch_size: 4, num_workers: 0, test_size: 0.3}}
train: {{epochs: 1, accelerator: cpu}}
"""
ARMS = ("plain", "llm")


def explorer_of(name: str, *options: str) -> Explorer:
    """Each arm of a recipe as it was before training."""
    recipe = load_recipe(name, options)
    set_up_data(recipe)
    recipes = [replace(recipe, arm=arm) for arm in ARMS]
    return Explorer([Opened(one.arm, one, build_task(one).eval(), Path("nowhere")) for one in recipes])


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory, llama_folder: Path) -> Explorer:
    folder = tmp_path_factory.mktemp("images")
    root = write_folder(folder / "photos", {"": 8}, classes=("<b>cat", "${dog}{{x}}"))
    (folder / "recipe.yaml").write_text(IMAGES.format(llm=llama_folder, root=root))
    return explorer_of(str(folder / "recipe.yaml"))


@pytest.fixture(scope="module")
def clouds(llama_folder: Path) -> Explorer:
    return explorer_of("points/kicad_small_debug", "--llm", str(llama_folder), "--train.accelerator", "cpu")


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory, llama_folder: Path) -> Explorer:
    """Motion clips know where the object is."""
    folder = tmp_path_factory.mktemp("clips")
    with pytest.MonkeyPatch.context() as patch:
        pictures_of(tmp_path_factory.mktemp("pictures"), patch)
        few = [word for split in ("train", "val", "test") for word in (f"--data.films.{split}", "6")]
        return explorer_of("video/motion_clips_debug", "--llm", str(llama_folder), "--data.root", str(folder), *few)


FAMILIES = ("images", "clouds", "clips")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_choice_of_every_family_is_shown(family: str, request: pytest.FixtureRequest) -> None:
    explorer: Explorer = request.getfixturevalue(family)
    assert explorer.things == family
    seen = explorer.item(1)
    assert seen is explorer.item(1)
    assert seen.truths.keys() == {"class"}
    assert {
        LAST,
        "encoder",
        "mapper_in",
        "attention",
        "feed_forward",
        "mapper_out",
        *ATTENTION,
    } <= explorer.stages.keys()
    for stage in explorer.stages:
        view = explorer.view(seen, explorer.labels, Choice(stage=stage, threshold=0.25))
        assert {*view.marked, *view.absent} == set(ARMS)
        assert "llm" in view.marked
        one = view.marked["llm"]
        assert torch.equal(one.above, one.values > 0.25)
        assert 0 <= one.values.min() <= one.values.max() <= 1
    page = view_html(explorer.view(seen, explorer.labels, Choice()), explorer.things, explorer.stages)
    assert re.search(r'<img src="data:image/png;base64,\w+', page)
    assert 'alt="test item 1' in page
    assert page.count("<td") == 2 * len(seen.sights["plain"].prediction or ())


def test_a_view_has_the_numbers_of_the_library(clips: Explorer) -> None:
    run = clips._runs["llm"]
    batch = run.items.batch([2])
    noted = observe(run.model, *run.task.inputs(batch))
    seen = clips.item(2)
    last = clips.view(seen, ["llm"], Choice()).marked["llm"]
    torch.testing.assert_close(last.values, magnitude(noted.at["mapper_out"].tokens)[0])
    assert last.stage == "mapper_out"
    assert last.iou is not None
    assert last.best_iou is not None
    assert last.best_iou >= last.iou
    second = clips.view(seen, ["llm"], Choice(stage="block attention", head=1)).marked["llm"]
    torch.testing.assert_close(second.values, scaled_to_one(noted.attention["block"][:, 1])[0])
    prediction = seen.sights["llm"].prediction
    (expected,) = run.task.predict(noted.output, batch)
    assert prediction == pytest.approx(expected, abs=1e-5)


def test_what_a_run_has_not_is_said_of_it_alone(images: Explorer) -> None:
    seen = images.item(0)
    assert images.view(seen, images.labels, Choice(stage="mapper_out")).absent == {"plain": "no such stage"}
    assert images.view(seen, images.labels, Choice(stage="block attention")).absent == {"plain": "no attention"}
    many = images.view(seen, images.labels, Choice(stage="encoder attention", head=9))
    assert set(many.absent.values()) == {"no such head"}
    page = view_html(many, images.things, images.stages)
    assert "<img" not in page
    assert "no head of this number" in page
    with pytest.raises(RecipeError, match="no run is chosen"):
        images.view(seen, [], Choice())
    with pytest.raises(RecipeError, match="no stage 'W3'"):
        images.view(seen, images.labels, Choice(stage="W3"))
    with pytest.raises(RecipeError, match="between 0 and 1"):
        Choice(threshold=1.5)
    with pytest.raises(DataError, match="no test item 99"):
        images.item(99)


def test_names_of_classes_and_files_are_text(images: Explorer, tmp_path: Path) -> None:
    file = tmp_path / "<img src=x onerror=alert(1)>.png"
    picture(3, mode="L").save(file)
    page = view_html(images.view(images.file(str(file)), images.labels, Choice()), images.things, images.stages)
    assert "onerror=alert(1)&gt;.png" in page
    assert "<b>" not in page
    assert html.escape("<b>cat") in page
    assert "&lt;p&gt;" in problem_html("<p>")


def test_a_broken_file_is_named_without_its_folder(images: Explorer, tmp_path: Path) -> None:
    file = tmp_path / "broken.png"
    picture(3).save(file)
    file.write_bytes(file.read_bytes()[:200])
    for name in ("broken.png", "absent.png", "notes.txt"):
        with pytest.raises(LmgraftError) as refused:
            images.file(str(tmp_path / name))
        assert name in str(refused.value)
        assert str(tmp_path) not in str(refused.value)


def test_numbers_that_are_none_are_said_in_words(images: Explorer) -> None:
    run = images._runs["llm"]
    broken = replace(run, task=build_task(run.recipe).eval())
    assert broken.inserted is not None
    with torch.no_grad():
        broken.inserted.mapper_out.weight[0, 0] = torch.nan
    explorer = Explorer([images._runs["plain"], broken])
    view = explorer.view(explorer.item(0), explorer.labels, Choice())
    assert view.absent == {"llm": "not finite"}
    assert "NaN" in view_html(view, explorer.things, explorer.stages)


def test_the_page_says_what_is_wrong(images: Explorer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def page(number: float | None = 0, file: Path | None = None, **more: Any) -> str:
        controls = {"runs": ["llm"], "stage": LAST, "measure": "magnitude", "head": -1, "threshold": 0.5} | more
        return shown(images, number, None if file is None else str(file), **controls)

    picture(1).save(tmp_path / "outside.png")
    (tmp_path / "uploads").mkdir()
    picture(1).save(tmp_path / "uploads" / "inside.png")
    (tmp_path / "uploads" / "link.png").symlink_to(tmp_path / "outside.png")
    assert "not uploaded here" in page(file=tmp_path / "uploads" / "inside.png")
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    assert 'alt="inside.png' in page(file=tmp_path / "uploads" / "inside.png")
    for name in ("outside.png", "uploads/../outside.png", "uploads/link.png", "uploads-2/a.png"):
        assert "not uploaded here" in page(file=tmp_path / name)
    for problem in (page(None), page(float("nan")), page(99), page(runs=[]), page(stage="x"), page(threshold=7)):
        assert 'role="alert"' in problem
    assert "head 2" in page(stage="block attention", head=1)


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/", {}, 200),
        ("/gradio_api/queue/join", {"origin": "http://localhost:7"}, 200),
        ("/", {"host": "evil.example:7"}, 403),
        ("/", {"host": "127.0.0.1:8"}, 403),
        ("/", {"origin": "http://evil.example"}, 403),
        ("/", {"origin": "null"}, 403),
        ("/gradio_api/file=/etc/passwd", {}, 403),
        ("/file=../../etc/passwd", {}, 403),
        ("//gradio_api//file=/etc/passwd", {}, 403),
        ("/gradio_api/proxy=http://evil.example", {}, 403),
    ],
)
def test_other_pages_and_names_are_refused_and_no_file_is_read(path: str, headers: dict[str, str], status: int) -> None:
    sent: list[Any] = []

    async def answers(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def keep(message: Any) -> None:
        sent.append(message)

    named = {"host": "127.0.0.1:7"} | headers
    scope = {"type": "http", "path": path, "headers": [(k.encode(), v.encode()) for k, v in named.items()]}
    asyncio.run(guarded(answers, 7)(scope, None, keep))
    assert sent[0]["status"] == status
    assert status == 403 or b"default-src 'self'" in dict(sent[0]["headers"])[b"content-security-policy"]


def test_a_port_that_is_taken_is_an_error() -> None:
    with _listening(0) as listener:
        listener.listen()
        with pytest.raises(RecipeError, match="cannot be listened on"), _listening(listener.getsockname()[1]):
            pass
    with pytest.raises(RecipeError, match="cannot be listened on"), _listening(99999):
        pass


def test_a_question_is_shown_whole_with_its_right_answer(
    tmp_path: Path, llama_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LMGRAFT_CACHE", str(tmp_path))
    explorer = explorer_of("vision_language/composed_questions_debug", "--llm", str(llama_folder))
    for run in explorer._runs.values():
        run.items.source = replace(run.items.source, texts=["red / blue and/or green?"] * len(run.items.source.texts))
    seen = explorer.item(0)
    assert seen.name.startswith("test item 0, ")
    assert seen.name.endswith(".png: 'red / blue and/or green?'")
    assert "/" not in seen.name.split(": ")[0]
    run = explorer._runs["plain"]
    right = run.recipe.data.answer_names[int(run.items.batch([0]).scores[0].argmax())]
    assert seen.truths["right"] == right
