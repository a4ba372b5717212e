"""Recipes: the ones that come along are valid, and a mistake in one names the key."""

import importlib
import pkgutil

import pytest
import yaml

import lmgraft.data
from lmgraft.data.base import Data
from lmgraft.errors import LmgraftError, RecipeError
from lmgraft.recipes import ARMS, build_model, list_recipes, load_recipe
from lmgraft.recipes.composing import CLASS, find_recipe, laid_over
from lmgraft.recipes.options import taken_by
from lmgraft.recipes.recipe import parse_recipe
from tiny import long_but

GOOD = find_recipe("image/fashion_vit")


@pytest.mark.parametrize("name", list_recipes())
def test_every_recipe_is_valid_and_its_header_says_what_to_expect(name):
    load_recipe(name)
    header = find_recipe(name)
    for word in ("Source:", "Command:", "Hardware:", "Time:", "Expected:"):
        assert word in header


LAST_OF_A_FAMILY = {name.partition("/")[0]: name for name in list_recipes()}.values()


@pytest.mark.parametrize("name", long_but(list_recipes(), *LAST_OF_A_FAMILY))
def test_every_recipe_has_a_debug_variant(name):
    recipe, whole = load_recipe(f"{name}_debug"), load_recipe(name)
    assert recipe.train.epochs <= 3
    assert "debug" not in yaml.safe_load(recipe.yaml)
    assert recipe.graft.at == whole.graft.at
    assert recipe.task_options == whole.task_options


def test_no_data_class_hides_what_it_hands_on_to_its_base():
    """What is handed on by ** in a form that the parser cannot follow would be an unknown key in every recipe."""
    names = [module.name for module in pkgutil.walk_packages(lmgraft.data.__path__, "lmgraft.data.")]
    found = {one for name in names for one in vars(importlib.import_module(name)).values() if isinstance(one, type)}
    classes = [one for one in found if issubclass(one, Data)]
    assert len(classes) > 50
    for one in classes:
        assert {"batch_size", "num_workers"} <= taken_by(one).keys(), one


def test_a_recipe_without_a_debug_variant_says_so(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("data: {class_path: lmgraft.data.image.fashion_mnist.FashionMNIST}\n")
    with pytest.raises(RecipeError, match=r"mine\.yaml has no debug variant"):
        load_recipe(f"{file}_debug")
    file.write_text(file.read_text() + "debug: {train: {epochs: 1}}\n")
    assert load_recipe(f"{file}_debug").train.epochs == 1
    assert load_recipe(str(file)).train.epochs == 3


@pytest.mark.parametrize(
    ("old", "new", "parts"),
    [
        ("seed: 0", "sead: 0", ["sead", "Did you mean 'seed'"]),
        ("optim: {lr:", "optim: {lrr:", ["lrr", "'lr'"]),
        ("train_size:", "train_sise:", ["train_sise", "'train_size'"]),
        ("label_smoothing:", "label_smothing:", ["label_smothing", "'label_smoothing'"]),
        ("llm: smollm2-135m", "lm: smollm2-135m", ["'graft.lm'", "'llm'"]),
        ("arm: llm", "arm: llama", ["arm", "llama", "random_frozen"]),
        ("fashion_mnist.FashionMNIST", "fashion_mnist.FasionMNIST", ["FasionMNIST"]),
        ("seed: 0", "seed: zero", ["seed", "zero", "int"]),
        ("seed: 0", "seed: [0", ["parsing"]),
        ("lr: 0.002", "lr: fast", ["optim.lr='fast'", "float"]),
    ],
)
def test_a_mistake_names_the_key(old, new, parts):
    assert old in GOOD
    with pytest.raises(RecipeError) as caught:
        parse_recipe(GOOD.replace(old, new))
    text = str(caught.value)
    for part in parts:
        assert part in text
    assert len(text.splitlines()) < 10
    assert "NoneType" not in text


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        (["--train.epoch", "3"], "'epochs'"),
        (["--data.rot", "x"], "'root'"),
        (["--train.epochs", "0"], "train.epochs=0"),
        (["--optim.lr=-1"], "optim.lr"),
        (["--optim.warmup", "2"], "optim.warmup"),
        (["--optim.beta2", "1"], "optim.beta2=1.0 is a decay"),
        (["--data.batch_size", "0"], "data.batch_size"),
        (["--data.num_workers", "-1"], "data.num_workers=-1"),
        (["--seed", "-1"], "seed=-1 is not from 0"),
        (["--graft.residual", "skip"], "gated"),
        (["stray"], "stray"),
        (["--seed"], "--seed needs a value"),
        (["--train.epochs", "1", "2"], "takes one value"),
        (["--data", "nowhere.Data"], "nowhere.Data cannot be imported"),
        (["--train.ema", "much"], "train.ema='much' does not fit; it takes float or null"),
    ],
)
def test_a_mistaken_override_names_the_key(overrides, part):
    with pytest.raises(LmgraftError, match=part):
        parse_recipe(GOOD, overrides)


def test_overrides_win_and_short_forms_work():
    recipe = parse_recipe(GOOD, ["--llm", "other.gguf", "--layer=3", "--data.root=DIR", "--seed", "5"])
    assert (recipe.graft.llm, recipe.graft.layer, recipe.data.root, recipe.seed) == ("other.gguf", 3, "DIR", 5)
    assert parse_recipe(GOOD, ["--layer", "[1, 2]"]).graft.layer == (1, 2)


IMAGES = ["--data", "lmgraft.data.image.image_files.ImageFiles", "--data.augment.auto_augment", "rand-m9"]
OPTIONAL = {
    "data.augment.auto_augment": "rand-m9",
    "data.augment.color_jitter": "0.4",
    "data.csv": "labels.csv",
    "data.classes": "4",
    "data.mean": "[0.1, 0.2, 0.3]",
    "train.ema": "0.9",
    "train.clip_grad": "1",
    "train.batchnorm_momentum": "{start: 0.5}",
    "optim.lr_per": "512",
    "graft.reads": "1:",
    "graft.dtype": "bfloat16",
    "graft.lora_targets": "[q, k]",
}


def resolved(key, arguments):
    value = yaml.safe_load(parse_recipe(GOOD, arguments).yaml)
    for part in key.replace("data.", "data.init_args.").split("."):
        value = value[part]
    return value


@pytest.mark.parametrize("key", OPTIONAL)
def test_null_switches_off_what_a_recipe_or_an_option_switches_on(key):
    switched_on = [*IMAGES, f"--{key}={OPTIONAL[key]}"]
    assert resolved(key, switched_on) is not None
    assert resolved(key, [*switched_on, f"--{key}", "null"]) is None


@pytest.mark.parametrize(
    ("key", "words", "value"),
    [
        ("graft.layer", ["0", "1"], [0, 1]),
        ("graft.layer", ["0,1"], [0, 1]),
        ("graft.layer", ["[0, 1]"], [0, 1]),
        ("graft.lora_targets", ["q,k"], ["q", "k"]),
        ("data.mean", ["0.1", "0.2", "0.3"], [0.1, 0.2, 0.3]),
        ("data.augment.scale", ["0.1,1"], [0.1, 1.0]),
        ("data.classes", ["cat,dog"], ["cat", "dog"]),
        ("data.root", ["a,b"], "a,b"),
        ("data.train_split", ["12"], "12"),
    ],
)
def test_lists_with_blanks_with_commas_and_as_yaml(key, words, value):
    assert resolved(key, [*IMAGES, f"--{key}", *words]) == value


def test_the_resolved_recipe_is_a_recipe_and_its_own_resolution():
    recipe = parse_recipe(GOOD, ["--train.epochs", "7", "--optim.layer_decay", "0.7", "--layer", "[1, 2]"])
    again = parse_recipe(recipe.yaml)
    assert again.yaml == recipe.yaml
    assert yaml.safe_load(again.yaml)["train"]["epochs"] == 7
    assert again.graft == recipe.graft


def test_an_unknown_recipe_suggests_one():
    with pytest.raises(RecipeError, match="image/fashion_vit"):
        load_recipe("image/fasion_vit")
    with pytest.raises(RecipeError, match="cannot be read"):
        load_recipe("nowhere.yaml")


def test_an_unknown_backbone_or_argument_is_named(make_recipe):
    with pytest.raises(LmgraftError, match="vit_teeny"):
        build_model(make_recipe("--backbone.name", "vit_teeny_patch16_224"))
    with pytest.raises(LmgraftError, match="widht"):
        build_model(make_recipe("--backbone.kwargs", "{widht: 3}"))


def test_every_arm_asks_a_question():
    assert all(arm.question.endswith("?") for arm in ARMS.values())


def test_an_option_deep_in_the_backbones_arguments_leaves_those_beside_it():
    text = "extends: image/fashion_vit\nbackbone: {kwargs: {vision: {name: vit, depth: 3}}}\n"
    options = [
        "--backbone.kwargs.vision.depth",
        "4",
        "--backbone.kwargs.vision.width=8",
        "--backbone.kwargs.text.a=[1]",
    ]
    kwargs = parse_recipe(text, options).backbone.kwargs
    assert kwargs["vision"] == {"name": "vit", "depth": 4, "width": 8}
    assert kwargs["text"] == {"a": [1]}


def test_a_recipe_may_extend_another(tmp_path):
    child = tmp_path / "child.yaml"
    child.write_text("extends: image/fashion_vit\nseed: 7\ndata: {init_args: {batch_size: 32}}\ntrain: {epochs: 1}\n")
    recipe, base = load_recipe(str(child)), load_recipe("image/fashion_vit")
    assert (recipe.seed, recipe.data.batch_size, recipe.train.epochs) == (7, 32, 1)
    assert recipe.data.train_size == base.data.train_size
    assert recipe.backbone == base.backbone
    assert parse_recipe(recipe.yaml).yaml == recipe.yaml
    part = tmp_path / "part.yaml"
    part.write_text("seed: 9\ntrain: {save_every: 7}\n")
    both = parse_recipe(f"extends: [{child}, {part}]\n")
    assert (both.seed, both.train.epochs, both.train.save_every) == (9, 1, 7)
    grandchild = f"extends: {child}\nbackbone: {{kwargs: {{depth: 2}}}}\n"
    assert parse_recipe(grandchild).backbone.kwargs == base.backbone.kwargs | {"depth": 2}
    assert parse_recipe(grandchild).seed == 7


def test_another_class_does_not_inherit_arguments():
    base = {"data": {"class_path": "A", "init_args": {"x": 1}}, "seed": 1}
    assert laid_over(base, {"data": {"class_path": "B", "init_args": {"y": 2}}}, [CLASS]) == {
        "data": {"class_path": "B", "init_args": {"y": 2}},
        "seed": 1,
    }
    assert laid_over(base, {"data": {"class_path": "A", "init_args": {"y": 2}}}, [CLASS])["data"]["init_args"] == {
        "x": 1,
        "y": 2,
    }


FLICKR = "lmgraft.data.vision_language.karpathy.Flickr30k"


@pytest.mark.parametrize(
    "options",
    [
        ["--data.class_path", FLICKR, "--data.root", "c"],
        ["--data.root=c", f"--data={FLICKR}"],
        ["--data", f"{{class_path: {FLICKR}, init_args: {{root: c}}}}"],
    ],
)
def test_a_class_given_as_an_option_drops_the_arguments_of_the_recipe_s(options):
    name = "vision_language/emoji_retrieval"
    there = yaml.safe_load(load_recipe(name, options).yaml)["data"]
    whole = f"data: {{class_path: {FLICKR}, init_args: {{root: c}}}}\n"
    assert there == yaml.safe_load(parse_recipe(f"extends: {name}\n{whole}").yaml)["data"]
    assert there["init_args"]["equal_texts"] is False


def test_the_recipe_s_own_class_given_as_an_option_keeps_its_arguments():
    whole = load_recipe("vision_language/emoji_retrieval")
    path = yaml.safe_load(whole.yaml)["data"]["class_path"]
    assert load_recipe("vision_language/emoji_retrieval", ["--data.class_path", path]).yaml == whole.yaml


@pytest.mark.parametrize("words", [["[shape, colour]"], ["shape,colour"], ["shape", "colour"]])
def test_a_value_below_a_mapping_of_lists(words):
    recipe = load_recipe("vision_language/easy_vqa", ["--data.only.answer_type", *words])
    assert recipe.data.only == {"answer_type": ["shape", "colour"]}


def test_one_word_below_a_mapping_of_lists_is_a_list_of_one():
    assert load_recipe("vision_language/easy_vqa", ["--data.only.answer_type", "shape"]).data.only == {
        "answer_type": ["shape"]
    }


def test_options_below_a_mapping_lie_beside_each_other_and_a_whole_mapping_takes_its_place():
    options = ["--data.only", "{answer_type: [shape]}", "--data.only.question_type", "[what]"]
    assert load_recipe("vision_language/easy_vqa", options).data.only == {
        "answer_type": ["shape"],
        "question_type": ["what"],
    }
    options = ["--data.only.answer_type", "shape", "--data.only", "{question_type: [what]}"]
    assert load_recipe("vision_language/easy_vqa", options).data.only == {"question_type": ["what"]}
    options = ["--data.only.answer_type", "[shape", "--data.only", "{a: 1"]
    with pytest.raises(RecipeError, match=r"--data\.only\.answer_type='\[shape' is no YAML"):
        load_recipe("vision_language/easy_vqa", options)


ASKED = """
data: {class_path: lmgraft.data.vision_language.question_files.QuestionFiles}
task: {class_path: lmgraft.tasks.question_answering.QuestionAnswering}
"""


def test_an_option_completes_a_file_that_lacks_a_required_argument():
    assert parse_recipe(ASKED, ["--data.train", "q.csv"]).data.tables["train"] == "q.csv"
    data, task = ASKED.split("\ntask")
    path = data.split()[-1].rstrip("}")
    given = ["--data.train", "q.csv", "--data.class_path", path]
    assert parse_recipe(f"task{task}", given).data.tables["train"] == "q.csv"


def test_a_class_that_nobody_gives_and_a_text_that_is_no_yaml():
    with pytest.raises(RecipeError, match="there is no class of data"):
        parse_recipe("seed: 1\n", ["--data.root", "here"])
    with pytest.raises(RecipeError, match="parsing"):
        parse_recipe("seed: [0", ["--data", FLICKR, "--data.root", "here"])


@pytest.mark.parametrize("options", [[], ["--data.root", "here"]])
def test_a_required_argument_that_nobody_gives_is_named(options):
    with pytest.raises(RecipeError, match=r"^mine: data: QuestionFiles needs train\b") as caught:
        parse_recipe(ASKED, options, where="mine")
    assert "--data.train" in str(caught.value)


def test_a_circle_and_an_unknown_base_are_named(tmp_path):
    one, two = tmp_path / "one.yaml", tmp_path / "two.yaml"
    one.write_text(f"extends: {two}\n")
    two.write_text(f"extends: {one}\n")
    with pytest.raises(RecipeError, match="circle"):
        load_recipe(str(one))
    with pytest.raises(RecipeError, match="image/fashion_vit"):
        parse_recipe("extends: image/fasion_vit\n")
