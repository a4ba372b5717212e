"""Arms: what each starts from, that only what is meant to differ differs, and that docs and colours know them all."""

from itertools import combinations
from pathlib import Path

import pytest
import torch
from lasting import InterruptError, watched_by
from matplotlib.colors import to_rgb
from pytorch_lightning import Callback

from lmgraft.errors import LmgraftError, RecipeError
from lmgraft.recipes import ARMS, build_model, train_run
from lmgraft.recipes.arms import arm_layer
from lmgraft.recipes.recipe import ArmName, recipe_parser
from lmgraft.report.drawing import COLORS

SHARED = [arm for arm in ARMS if arm != "plain_equal_flops"]
"""Arms whose encoder is the recipe's."""


def test_arms_of_one_seed_share_every_initial_weight_that_they_have(make_recipe):
    states = {arm: build_model(make_recipe("--arm", arm)).state_dict() for arm in SHARED}
    for arm in SHARED:
        for name, tensor in states["plain"].items():
            assert torch.equal(tensor, states[arm][name]), (arm, name)
        if arm != "plain":
            for name in ("graft.mapper_in.weight", "graft.mapper_out.weight"):
                assert torch.equal(states["llm"][name], states[arm][name]), (arm, name)
    other = build_model(make_recipe("--arm", "llm", "--seed", "4")).state_dict()
    assert not torch.equal(other["graft.mapper_in.weight"], states["llm"]["graft.mapper_in.weight"])
    assert not torch.equal(other["patch_embed.proj.weight"], states["llm"]["patch_embed.proj.weight"])


class _Watch(Callback):
    """Notes images, labels and draws of the first epoch, and ends the run."""

    def __init__(self):
        self.seen = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        state = torch.get_rng_state()
        self.seen.append((*(part.clone() for part in batch), torch.rand(3)))
        torch.set_rng_state(state)

    def on_train_epoch_end(self, trainer, pl_module):
        raise InterruptError


@pytest.mark.long
@pytest.mark.slow
def test_arms_of_one_seed_see_the_same_first_epoch(make_recipe, tmp_path):
    seen = {}
    for arm in ARMS:
        watch = _Watch()
        with watched_by(watch), pytest.raises(InterruptError):
            train_run(make_recipe("--arm", arm), tmp_path / arm, progress="none")
        seen[arm] = watch.seen
    assert len(seen["plain"]) == 4
    for arm in ARMS:
        for mine, plain in zip(seen[arm], seen["plain"], strict=True):
            assert all(torch.equal(a, b) for a, b in zip(mine, plain, strict=True)), arm


def test_arms_that_are_not_trained_do_not_depend_on_how_the_recipe_trains_its_block(make_recipe):
    halves = ("attention_only", "mlp_only", "random_attention_only", "random_mlp_only")
    for arm in ("random_frozen", "shuffled", "spectrum", *halves):
        block = build_model(make_recipe("--arm", arm, "--graft.train_block", "all")).graft.block
        assert not any(p.requires_grad for p in block.parameters()), arm


class TestTwoBlocks:
    def test_loads_the_layer_before_too(self, make_recipe):
        for layer, loaded in ((-1, (1, 2)), (-2, (0, 1)), (1, (0, 1)), (2, (1, 2))):
            model = build_model(make_recipe("--arm", "two_blocks", f"--layer={layer}"))
            assert model.graft.block.provenance.layers == loaded

    def test_is_the_two_layers(self, make_recipe):
        arm = build_model(make_recipe("--arm", "two_blocks")).graft.block
        given = build_model(make_recipe("--layer", "[1, 2]")).graft.block
        assert arm.provenance == given.provenance

    def test_without_a_layer_before(self, make_recipe):
        with pytest.raises(RecipeError, match="before layer 0 there is none"):
            build_model(make_recipe("--arm", "two_blocks", "--layer=0"))
        with pytest.raises(LmgraftError, match="layer -4 does not exist"):
            build_model(make_recipe("--arm", "two_blocks", "--layer=-3"))

    def test_with_layers_given(self, make_recipe):
        with pytest.raises(RecipeError, match=r"takes 2 layers by itself, and graft.layer is \[0, 1\]"):
            build_model(make_recipe("--arm", "two_blocks", "--layer", "[0, 1]"))

    def test_others_load_what_the_recipe_says(self):
        for arm in SHARED:
            if arm != "two_blocks":
                assert arm_layer(arm, (0, 1)) == (0, 1)
                assert arm_layer(arm, 0) == 0


def arms_table():
    """`python tests/runs/test_arms.py` prints it, to be pasted between the marks in docs/variants.md."""
    lines = ["| arm | question | keeps of the pretrained block | destroys |", "|---|---|---|---|"]
    lines += [f"| `{name}` | {arm.question} | {arm.keeps} | {arm.destroys} |" for name, arm in ARMS.items()]
    return "\n".join(lines)


def test_the_table_of_arms_is_the_one_in_the_code():
    text = (Path(__file__).parents[2] / "docs" / "variants.md").read_text()
    begin, end = "<!-- arms: begin -->\n", "\n<!-- arms: end -->"
    assert text[text.index(begin) + len(begin) : text.index(end)] == arms_table()


def test_every_arm_says_in_a_sentence_what_it_asks_keeps_and_destroys():
    for arm in ARMS.values():
        assert arm.question.endswith("?")
        assert arm.keeps.endswith(".")
        assert arm.destroys.endswith(".")
    assert len({arm.question for arm in ARMS.values()}) == len(ARMS)


def test_help_names_every_arm():
    text = " ".join(recipe_parser().format_help().split())
    assert set(ArmName.__args__) == set(ARMS)
    for name, arm in ARMS.items():
        assert f"{name} ({arm.question})" in text


def _seen(color, kind):
    """Linear RGB as without red cones or without green ones (Machado et al. 2009, severity 1)."""
    to = {
        "all": torch.eye(3),
        "no red": torch.tensor([[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]]),
        "no green": torch.tensor([[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]]),
    }[kind]
    rgb = torch.tensor(to_rgb(color))
    linear = torch.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return _lab((to @ linear).clamp(0, 1))


def _lab(linear):
    xyz = torch.tensor([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ linear
    f = xyz / torch.tensor([0.9505, 1.0, 1.089])
    f = torch.where(f > 0.008856, f ** (1 / 3), 7.787 * f + 16 / 116)
    return torch.stack([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("kind", ["all", "no red", "no green"])
def test_colours_are_told_apart(kind):
    assert COLORS.keys() == ARMS.keys()
    near = {(a, b): float((_seen(COLORS[a], kind) - _seen(COLORS[b], kind)).norm()) for a, b in combinations(COLORS, 2)}
    worst = min(near, key=near.__getitem__)
    assert near[worst] > 12, (worst, near[worst])  # 2.3 is just noticeable


if __name__ == "__main__":
    import sys

    sys.stdout.write(arms_table() + "\n")
