"""A study's file: what it may say, what is refused, and that study.yaml reads back as the same study."""

import pytest
import yaml
from studying import study_of

from lmgraft.errors import RecipeError
from lmgraft.studies.study.config import find_study, list_studies, load_study, parse_study
from lmgraft.studies.study.run import make_cells
from tiny import long_but

ARMS = "recipe: image/fashion_vit_debug\narms: {arms}\n"


def parse(text, *arguments):
    return parse_study(text, arguments, name="mine", where="mine.yaml")


def with_arms(arms, *arguments):
    return parse(ARMS.format(arms=arms), *arguments)


def test_a_list_of_arms():
    study = with_arms("[plain, llm, random_frozen, shuffled, mlp]")
    assert list(study.arms) == ["plain", "llm", "random_frozen", "shuffled", "mlp"]
    assert study.contrasts == (("llm", "plain"), ("llm", "random_frozen"), ("llm", "mlp"))
    assert (study.reference, study.seeds, study.margin, study.metric.name) == (
        "plain",
        (0, 1, 2, 3, 4),
        0.005,
        "accuracy",
    )
    assert study.arms["llm"].question
    rates = "\nlearning_rates: [3e-4, 1e-3]\noverrides: {optim.weight_decay: 1e-2}"  # strings, to YAML
    assert with_arms(f"[plain, llm]{rates}").learning_rates == (0.0003, 0.001)


def test_arms_by_name_change_the_recipe(tmp_path):
    study = with_arms("{plain: {}, late: {arm: llm, graft.layer: 12, question: 'Late?'}, early: {arm: llm, layer: 3}}")
    assert study.contrasts == (("late", "plain"), ("early", "plain"))
    assert study.arms["late"].question == "Late?"
    by_arm = {cell.arm: cell.load() for cell in make_cells(study, tmp_path)[:3]}
    assert {arm: (r.arm, r.graft.layer) for arm, r in by_arm.items()} == {
        "plain": ("plain", -1), "late": ("llm", 12), "early": ("llm", 3),
    }  # fmt: skip


def test_each_makes_an_arm_of_every_choice():
    study = with_arms(
        '{plain: , "{arm}_{graft.layer}_of_{graft.llm}": '
        "{arm: {each: [llm, random_frozen]}, graft.layer: {each: [2, [-2, -1]]}, graft.llm: owner/name-1.5b}}"
    )
    assert list(study.arms) == [
        "plain",
        *("llm_2_of_name-1.5b", "llm_-2+-1_of_name-1.5b"),
        *("random_frozen_2_of_name-1.5b", "random_frozen_-2+-1_of_name-1.5b"),
    ]
    assert study.arms["llm_-2+-1_of_name-1.5b"].overrides == {"graft.layer": [-2, -1], "graft.llm": "owner/name-1.5b"}


def test_the_first_arm_is_the_reference_where_none_is_plain():
    study = with_arms("{a: {arm: llm}, b: {arm: mlp}, c: {arm: linear}}")
    assert (study.reference, study.contrasts) == ("a", (("a", "b"),))
    assert with_arms("[llm, shuffled, spectrum]").contrasts == (("shuffled", "llm"), ("spectrum", "llm"))


def test_each_of_several_blocks_is_held_against_the_reference_and_its_own_controls():
    arms = (
        "{plain: {}, a: {arm: llm, graft.layer: 3}, b: {arm: llm, layer: 9, graft.llm: x.gguf}, c: {arm: llm}, "
        "r3: {arm: random_frozen, layer: 3}, r9: {arm: random_frozen, graft: {layer: 9, llm: x.gguf}}, "
        "m9: {arm: mlp, graft.layer: 9, llm: x.gguf}, other: {arm: random_frozen, graft.layer: 9}}"
    )
    to_plain = (("a", "plain"), ("b", "plain"), ("c", "plain"))
    assert with_arms(arms).contrasts == (*to_plain, ("a", "r3"), ("b", "r9"), ("b", "m9"))
    # Two that fit are none that is meant; one at another place or learning rate does not fit.
    arms = (
        "{plain: {}, a: {arm: llm, graft.layer: 3}, b: {arm: llm, graft.at: middle}, random_frozen: {}, mlp: {}, "
        "r3: {arm: random_frozen, graft.layer: 3}, again: {arm: random_frozen, layer: 3}, "
        "mb: {arm: mlp, graft.at: middle, optim.lr: 0.1}}"
    )
    assert with_arms(arms).contrasts == to_plain[:2]


def test_another_metric_takes_its_own_margin():
    file = "[plain, llm]\nmargin: 0.003\nnotes: [of the file]"
    study = with_arms(file, "--metric", "nll")
    assert study.margin == study.metric.margin == 0.01
    assert study.notes[0] == "of the file"
    assert "the margin is 0.01, nll's own, and not 0.003" in study.notes[1]
    again = parse_study(study.yaml, ["--metric=nll"], name="mine")
    assert again == study
    back = parse_study(study.yaml, ["--metric=accuracy"], name="mine")
    assert (back.margin, len(back.notes)) == (0.005, 3)
    for kept in (["--metric=accuracy"], ["--metric=nll", "--margin=0.003"], ["--margin", "0.003", "--metric", "nll"]):
        study = with_arms(file, *kept)
        assert (study.margin, study.notes) == (0.003, ("of the file",))
    assert with_arms("[plain, llm]", "--metric", "nll").notes == ()


def test_a_study_extends_another(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("extends: image/fashion_controls\nseeds: [7, 9]\noverrides: {train.epochs: 1}\n")
    study = load_study(str(file))
    original = load_study("image/fashion_controls")
    assert (study.name, study.seeds, study.recipe) == ("mine", (7, 9), original.recipe)
    assert study.overrides == original.overrides | {"train.epochs": 1}


def test_options_of_the_command_line_go_to_study_or_recipe(tmp_path):
    options = ["--seeds", "[5, 6]", "--metric=nll", "--train.epochs", "7", "--llm=x.gguf", "--margin", "0.02"]
    study = with_arms("{plain: {}, llm: {train.epochs: 2}}", *options)
    assert (study.seeds, study.metric.name, study.margin) == ((5, 6), "nll", 0.02)
    assert study.arguments == ("--train.epochs", "7", "--llm=x.gguf")
    plain, llm = (cell.load() for cell in make_cells(study, tmp_path)[:2])
    assert (plain.train.epochs, plain.seed, plain.graft.llm) == (7, 5, "x.gguf")
    assert llm.train.epochs == 2  # the arm's own comes last
    assert list(with_arms("[plain, llm]", "--arms", "plain,shuffled,mlp").arms) == ["plain", "shuffled", "mlp"]


@pytest.mark.long
def test_the_resolved_study_reads_back_as_itself():
    for study in (
        with_arms("[plain, llm, mlp]", "--train.epochs=3", "--notes", '["a: b", "ü"]'),
        with_arms(
            "{plain: {}, l: {arm: llm, graft.layer: [-2, -1], optim.weight_decay: 0.1}}", "--robustness.limit", "9"
        ),
        with_arms("[plain, llm]", "--learning_rates", "[0.001, 3e-4]", "--contrasts", "[[plain, llm]]"),
        *(load_study(name) for name in list_studies()),
    ):
        again = parse_study(study.yaml, name="study", where="study.yaml")
        assert again == study
        assert again.yaml == study.yaml


@pytest.mark.parametrize("name", long_but(list_studies(), "image/fashion_controls", "image/paper_depth"))
def test_every_study_has_a_header_a_sibling_and_recipes_that_fit(name, tmp_path):
    text = find_study(name)
    assert text.startswith("# ")
    for head in ("Source:", "Command:", "Hardware:", "Time:", "Expected:"):
        assert f"# {head}" in text
    assert load_study(name).notes
    assert load_study(f"{name}_debug").seeds == (0, 1)
    study = load_study(name, ["--data.root", "nowhere"])
    recipes = {
        cell.arm: cell.load() for cell in make_cells(study, tmp_path, foresee=True) if cell.seed == study.seeds[0]
    }
    assert all(recipe.data.batch_size % 2 == 0 for recipe in recipes.values())
    data = [yaml.safe_load(recipe.yaml)["data"]["init_args"] for recipe in recipes.values()]
    assert all(given == data[0] for given in data)
    assert data[0]["val_size"] > 0 or data[0]["choose"] == "last"  # the test items must not choose the epoch


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no keys"),
        ("- plain\n- llm\n", "holds no keys"),
        ("plain", "holds no keys"),
        ("arms: [plain, llm", "not readable YAML"),
        ("arms: [plain, llm]", "names no recipe"),
        ("recipe: image/fashion_vit_debug", "has no arms"),
        ("recipe: x\narms: [plain, llm]\nmetrik: nll", "metrik"),
        ("recipe: x\narms: [plain, llm]\nextends: image/none", "there is no study 'image/none'"),
        ("recipe: x\narms: [plain, llm]\narguments: --train.epochs", "is no list of options"),
        ("recipe: x\narms: [plain, llm]\narguments: [--seed=4]", "--seed is the study's to choose"),
        ("recipe: x\narms: [plain, llm]\noverrides: {seed: 3}", "overrides sets seed"),
        ("recipe: x\narms: [plain, llm]\nname: ../elsewhere", "names no folder"),
    ],
)
def test_a_file_that_is_no_study(text, said):
    with pytest.raises(RecipeError, match=said):
        parse(text)


@pytest.mark.parametrize(
    ("arms", "said"),
    [
        ("[]", "has no arms"),
        ("{}", "has no arms"),
        ("5", "has no arms"),
        ("[plain]", "one arm, plain"),
        ("[plain, lmm]", "(?s)unknown kind 'lmm'.*Did you mean 'llm'"),
        ("[plain, llm, llm]", "two arms are called 'llm'"),
        ("[plain, {llm: {}}]", "which is no name"),
        ("{plain: {}, llm: 12}", "arm 'llm' is 12"),
        ("{plain: {}, a: {arm: llm}, b: {arm: llm}}", "'a' and 'b' are the same"),
        ("{plain: {}, A: {arm: llm}, a: {arm: mlp}}", "two arms are called"),
        ("{plain: {}, ..: {arm: llm}}", "is no label"),
        ("{plain: {}, a/b: {arm: llm}}", "is no label"),
        ('{plain: {}, "l{graft.layr}": {arm: llm, graft.layer: 3}}', "is no label"),
        ("{plain: {}, l: {arm: llm, graft.layer: {each: [1, 2]}}}", "two arms are called 'l'"),
        ("{plain: {}, l: {arm: llm, graft.layer: {each: []}}}", r"has each: \[\]"),
        ("{plain: {}, l: {arm: llm, graft.layer: {each: 5}}}", "has each: 5"),
        ("{plain: {}, llm: {data.train_size: 10}}", "'llm' changes data.train_size: all arms must see the same data"),
        ("{plain: {}, llm: {data: {init_args: {train_size: 9}}}}", "'llm' changes data"),
        ("{plain: {}, llm: {seed: 3}}", "'llm' changes seed"),
    ],
)
def test_arms_that_cannot_be_compared(arms, said):
    with pytest.raises(RecipeError, match=said):
        with_arms(arms)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--seeds", "1"], "1 seed cannot tell an effect from luck"),
        (["--seeds", "0"], "0 seeds cannot tell"),
        (["--seeds", "[4]"], "1 seed cannot"),
        (["--seeds", "[1, 1]"], "must be different"),
        (["--seeds", "[-1, 1]"], "from 0 to"),
        (["--seeds", "[1, 4294967296]"], "from 0 to"),
        (["--seeds", "-3"], "-3 seeds cannot be trained"),
        (["--seeds", "1000000000"], "1000000000 seeds cannot be trained"),
        (["--seeds", "many"], "seeds"),
        (["--metric", "acuracy"], "no metric 'acuracy'.*Did you mean 'accuracy'"),
        (["--reference", "mlp"], "reference 'mlp' is no arm"),
        (["--contrasts", "[[llm, mlp]]"], "no pair of arms"),
        (["--contrasts", "[[llm, llm]]"], "no pair of arms"),
        (["--contrasts", "[[llm]]"], "no pair of arms"),
        (["--contrasts", "[]"], "nothing would be compared"),
        (["--contrasts", "[[llm, plain], [plain, llm]]"], "planned twice"),
        (["--margin", ".nan"], "margin=nan"),
        (["--margin", ".inf"], "margin=inf"),
        (["--margin", "0"], "margin=0"),
        (["--margin", "0.5"], r"50 points"),
        (["--metric", "nll", "--margin", "1.5"], r"1.5 nats"),
        (["--confidence", "95"], "confidence=95"),
        (["--learning_rates", "[0.1, 0]"], "must be positive"),
        (["--learning_rates", "[0.1, 0.1000000001]"], "not all different"),
        (["--rate_seeds", "2"], "rate_seeds without rates"),
        (["--rate_seeds", "[7, 7]", "--learning_rates", "[0.1, 0.2]"], "must be different"),
        (["--rate_seeds", "[4]", "--learning_rates", "[0.1, 0.2]"], "seed 4 both chooses rates and is compared"),
        (["--rate_seeds", "-1", "--learning_rates", "[0.1, 0.2]"], "rate_seeds=-1"),
        (["--learning_rates", "[0.1]", "--overrides", "{optim.lr: 1}"], "overrides sets optim.lr"),
        (["--seed", "3"], "--seed is the study's to choose.*give --seeds"),
        (["--arm=llm"], "--arm is the study's to choose"),
        (["--notes.x", "1"], "notes"),
    ],
)
def test_options_that_do_not_fit(options, said):
    with pytest.raises(RecipeError, match=f"(?s){said}"):
        with_arms("[plain, llm]", *options)


def test_a_path_that_is_no_text(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="no text in UTF-8"):
        load_study(str(file))
    with pytest.raises(RecipeError, match="cannot be read"):
        load_study(str(tmp_path / "none.yaml"))


def test_cells_lie_seed_by_seed_with_a_folder_for_every_rate(tmp_path):
    study = with_arms("[plain, llm]", "--seeds", "2", "--learning_rates", "[0.001, 0.0003]")
    cells = make_cells(study, tmp_path)
    assert [cell.name for cell in cells[:3]] == [
        "plain, seed 0, lr 0.001",
        "plain, seed 0, lr 0.0003",
        "llm, seed 0, lr 0.001",
    ]
    assert cells[1].folder == tmp_path / "runs" / "plain" / "lr0.0003" / "seed0"
    assert cells[1].load().optim.lr == 0.0003
    assert len({cell.folder for cell in cells}) == len(cells) == 8
    chosen_apart = with_arms("[plain, llm]", "--seeds", "2", "--rate_seeds", "2", "--learning_rates", "[0.1, 0.2]")
    assert [cell.seed for cell in make_cells(chosen_apart, tmp_path)] == [2] * 4 + [3] * 4
    assert [cell.seed for cell in make_cells(chosen_apart, tmp_path, foresee=True)] == [2] * 4 + [3] * 4 + [0, 0, 1, 1]
    assert parse_study(chosen_apart.yaml, name="mine").rate_seeds == (2, 3)
    assert make_cells(study_of("image/fashion_vit_debug"), tmp_path)[0].folder == tmp_path / "runs" / "plain" / "seed0"


def test_a_mistake_in_the_recipe_names_the_arm(tmp_path):
    from lmgraft.studies.study.checks import check_cells

    study = with_arms("{plain: {}, late: {arm: llm, graft.layr: 3}}")
    with pytest.raises(RecipeError, match=r"arm late: .*layr"):
        check_cells(make_cells(study, tmp_path))


def test_contrasts_of_arms_that_the_command_line_leaves_out_are_dropped_and_it_is_said():
    study = load_study("image/fashion_controls", ["--arms", "plain,llm,shuffled", "--seeds", "8", "--metric", "nll"])
    assert study.contrasts == (("llm", "plain"),)
    (note,) = [note for note in study.notes if "contrasts" in note]
    assert note.startswith("Of the file's contrasts llm - random_frozen, llm - mlp are not compared: --arms leaves out")
    assert parse_study(study.yaml, name=study.name) == study
    none_left = load_study("image/fashion_controls", ["--arms", "plain,linear"])
    assert none_left.contrasts == (("linear", "plain"),)
    assert any("those by default are" in note for note in none_left.notes)
    with pytest.raises(RecipeError, match="no pair of arms"):
        load_study("image/fashion_controls", ["--arms", "plain,llm", "--contrasts", "[[llm, mlp]]"])


def test_robustness_may_be_changed_from_the_command_line():
    file = "[plain, llm]\nrobustness: {corruptions: [fog], limit: 50}"
    of = [(["--robustness.limit", "3"], ("fog",), 3), (["--robustness.limit=4", "--robustness.seed=2"], ("fog",), 4)]
    of += [(["--robustness", "{limit: 7}"], None, 7), (["--robustness.corruptions", "[snow]"], ("snow",), 50)]
    for options, corruptions, limit in of:
        study = with_arms(file, *options)
        assert (study.robustness.suite.corruptions, study.robustness.limit) == (corruptions, limit)
        assert parse_study(study.yaml, name="mine") == study
    assert with_arms(file, "--robustness", "null").robustness is None
    assert with_arms("[plain, llm]", "--robustness.limit", "3").robustness.limit == 3
    with pytest.raises(RecipeError, match="limitt"):
        with_arms(file, "--robustness.limitt", "3")


def test_a_key_that_comes_twice_is_said():
    with pytest.raises(RecipeError, match="'arms' comes twice in one mapping, again in line 3"):
        parse_study("recipe: x\narms: [plain, llm]\narms: [plain, mlp]", name="mine")
    with pytest.raises(RecipeError, match="'limit' comes twice"):
        parse_study("recipe: x\narms: [plain, llm]\nrobustness: {limit: 1, limit: 2}", name="mine")
    merged = "recipe: image/fashion_vit\nbase: &b {train.epochs: 1}"
    with pytest.raises(RecipeError, match="base"):  # an anchor is no repetition
        parse_study(merged + "\narms: [plain, llm]\noverrides: {<<: *b, train.epochs: 2}", name="mine")


def test_null_is_the_default_of_any_key():
    keys = ("seeds", "overrides", "notes", "learning_rates", "margin", "contrasts", "robustness", "metric", "question")
    assert with_arms("[plain, llm]\n" + "".join(f"{key}: null\n" for key in keys)) == with_arms("[plain, llm]")


def test_a_reference_that_the_command_line_leaves_out_is_another_and_it_is_said():
    file = "[plain, llm, random_frozen]\nreference: random_frozen\ncontrasts: [[llm, random_frozen]]"
    study = with_arms(file, "--arms", "plain,llm")
    assert (study.reference, study.contrasts) == ("plain", (("llm", "plain"),))
    assert study.notes[-1] == "The file's reference, random_frozen, is not among --arms; plain is taken."
    assert with_arms(file, "--arms", "llm,random_frozen").reference == "random_frozen"
    for given in ("--reference", "--contrasts"):
        value = "random_frozen" if given == "--reference" else "[[llm, random_frozen]]"
        with pytest.raises(RecipeError, match=r"no (arm|pair of arms)"):
            with_arms("[plain, llm, random_frozen]", "--arms", "plain,llm", given, value)


def test_a_study_that_extends_another_and_changes_its_metric_does_not_keep_the_margin(tmp_path):
    base, middle, last = (tmp_path / f"{name}.yaml" for name in ("base", "middle", "last"))
    base.write_text("recipe: image/fashion_vit\narms: [plain, llm]\nmargin: 0.003\n")
    middle.write_text(f"extends: {base}\nmetric: nll\n")
    last.write_text(f"extends: {middle}\nseeds: 3\n")
    assert [load_study(str(file)).margin for file in (base, middle, last)] == [0.003, 0.01, 0.01]
    middle.write_text(f"extends: {base}\nmetric: nll\nmargin: 0.02\n")
    assert load_study(str(last)).margin == 0.02
    last.write_text(f"extends: {middle}\nmetric: accuracy\n")
    assert load_study(str(last)).margin == 0.005
    middle.write_text(f"extends: {base}\nmetric: accuracy\n")  # the default, spelled out
    assert load_study(str(middle)).margin == 0.003


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--metrc", "nll"], r"no option --metrc[^?]*'metric'"),
        (["--seeds", "5", "6", "7"], r"--seeds takes one value[^?]*\[5, 6"),
    ],
)
def test_mistyped_options_of_a_study(options, said):
    with pytest.raises(RecipeError, match=f"(?s){said}"):
        load_study("image/fashion_controls_debug", options)
    assert load_study("image/fashion_controls_debug", ["--llm", "x.gguf", "--layer=3"]).arguments
