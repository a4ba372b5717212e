"""Counted operations: those of a hand calculation and of a real step; and an encoder made as large as they say."""

import pytest
import torch
import yaml
from lasting import interrupt
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lmgraft.errors import RecipeError
from lmgraft.recipes import build_model, load_trained, train_run
from lmgraft.recipes import equal_flops as choosing
from lmgraft.recipes.build import set_up_data
from lmgraft.recipes.cost import count_flops, equal_flops
from lmgraft.recipes.flops import flops_of
from lmgraft.recipes.recipe import load_recipe, parse_recipe

TOKENS, WIDTH, HEADS, DEPTH, CLASSES, PATCH, BATCH = 5, 24, 2, 2, 10, 14 * 14, 24
"""Of the stand-in recipe: 2 x 2 patches of one channel and the class token."""


def by_hand(depth=DEPTH):
    """Operations of an image's forward: of the patches' convolution, and of all that gradient flows through."""
    patches = 2 * 4 * PATCH * WIDTH
    attention = 2 * TOKENS * WIDTH * 3 * WIDTH + 2 * 2 * TOKENS * TOKENS * WIDTH + 2 * TOKENS * WIDTH * WIDTH
    mlp = 2 * 2 * TOKENS * WIDTH * 4 * WIDTH
    return patches, depth * (attention + mlp) + 2 * WIDTH * CLASSES


def test_a_vit_by_hand(make_recipe):
    patches, rest = by_hand()
    counted = count_flops(make_recipe("--arm", "plain"))
    assert counted.batch_size == BATCH
    assert counted.evaluation == patches + rest
    # Each product has two of its size in the backward pass; the images want no gradient.
    assert counted.train == 2 * patches + 3 * rest


def test_the_mappers_by_hand(make_recipe):
    """One token is read: W1 and W2 run for it alone."""
    patches, rest = by_hand()
    mappers = 2 * 2 * WIDTH * 32
    counted = count_flops(make_recipe("--arm", "linear"))
    assert counted.evaluation == patches + rest + mappers
    assert counted.train == 2 * patches + 3 * (rest + mappers)


def really(model, batch=BATCH):
    """Operations of a step and of a second evaluation, whose folds were kept from the first; with real numbers."""
    images = torch.randn(batch, 1, 28, 28)
    with sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as train:
            model.train()(images).square().mean().backward()
        with torch.no_grad():
            model.eval()(images)
            with FlopCounterMode(display=False) as evaluation:
                model(images)
    return train.get_total_flops() / batch, evaluation.get_total_flops() / batch


@pytest.mark.parametrize(
    "arm", ["plain", "llm", "attention_only", "mlp_only", "two_blocks", "llm_finetuned", "llm_lora", "mlp"]
)
def test_counts_are_those_of_a_real_step(make_recipe, arm):
    recipe = make_recipe("--arm", arm)
    model = build_model(recipe)
    before = {n: p.clone() for n, p in model.named_parameters()}
    counted = flops_of(model, recipe)
    assert model.training  # the model is left as it is
    assert all(torch.equal(p, before[n]) and p.grad is None for n, p in model.named_parameters())
    assert (counted.train, counted.evaluation) == really(model)


def test_the_form_is_that_of_the_batch(make_recipe):
    """Folds are shared by the images of a batch."""
    recipe = make_recipe("--graft.form", "folded", "--backbone.kwargs.embed_dim", "8")
    few, many = (count_flops(recipe, batch_size=n) for n in (2, 512))
    assert (few.batch_size, many.batch_size) == (2, 512)
    assert few.train > 1.15 * many.train
    assert few.evaluation == many.evaluation


def test_stored_tokens_need_no_encoder_in_training(make_recipe):
    whole = count_flops(make_recipe("--arm", "linear"))
    stored = count_flops(make_recipe("--arm", "linear", "--features.cached", "true"))
    mappers, head = 2 * 2 * WIDTH * 32, 2 * WIDTH * CLASSES
    assert stored.evaluation == whole.evaluation
    assert stored.train == 3 * (mappers + head) - 2 * WIDTH * 32  # no gradient goes back to the tokens


SWIN = "{patch_size: 2, embed_dim: 8, depths: [1, 1], num_heads: [1, 2], window_size: 7}"


def test_a_training_step_of_retrieval_has_all_its_captions(llama_folder):
    """An image once; its caption, three others and a partner's; five pairs fused. Evaluation counts one pair."""
    overrides = ["--arm", "plain", "--graft.llm", str(llama_folder), "--data.negatives", "3"]
    recipe = load_recipe("vision_language/emoji_retrieval_debug", overrides)
    set_up_data(recipe)
    model = build_model(recipe)
    batch = recipe.data.example(BATCH)
    images, ids, mask = recipe.task(model).training_inputs(batch)
    assert ids.shape[:2] == (BATCH, 5)
    counted = count_flops(recipe, batch_size=BATCH)
    with FlopCounterMode(display=False) as evaluation, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        model.eval()(images, ids[:, 0], mask[:, 0])
    assert counted.evaluation == evaluation.get_total_flops() / BATCH
    with FlopCounterMode(display=False) as train, sdpa_kernel(SDPBackend.MATH):
        model.train()(images, ids, mask)[..., 0].square().mean().backward()
    assert counted.train == pytest.approx(train.get_total_flops() / BATCH, rel=0.01)
    assert counted.train > 8 * counted.evaluation


class TestEqualFlops:
    @pytest.mark.long
    def test_no_other_depth_is_nearer(self, make_recipe):
        recipe = make_recipe("--arm", "plain_equal_flops", "--graft.form", "dense")
        found = equal_flops(recipe)
        depth = found.kwargs["depth"]
        assert depth > DEPTH
        assert found.target == count_flops(make_recipe("--arm", "llm", "--graft.form", "dense")).train
        by_depth = {d: 2 * by_hand(d)[0] + 3 * by_hand(d)[1] for d in range(1, 12)}
        assert depth == min(by_depth, key=lambda d: abs(by_depth[d] - found.target))
        assert found.train == by_depth[depth]
        assert found.ratio == found.train / found.target
        assert 0.75 < found.ratio < 1.25
        assert len(build_model(recipe).blocks) == depth
        assert count_flops(recipe).train == found.train

    def test_the_run_notes_it_and_does_not_choose_again(self, make_recipe, tmp_path, monkeypatch):
        recipe = make_recipe("--arm", "plain_equal_flops", "--graft.form", "dense")
        depth = equal_flops(recipe).kwargs["depth"]
        interrupt(recipe, tmp_path / "run", 5)
        train_run(recipe, tmp_path / "run", resume=True, progress="none")
        noted = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["backbone"]
        assert noted["equal_flops"] == {"depth": depth}
        assert noted["kwargs"]["depth"] == DEPTH
        monkeypatch.setattr(choosing, "nearest_encoder", lambda *_: pytest.fail("it was chosen again"))
        again, model = load_trained(tmp_path / "run")
        assert len(model.blocks) == depth
        assert parse_recipe(again.yaml).yaml == again.yaml

    def test_the_recipe_may_say_it(self, make_recipe):
        said = ("--backbone.equal_flops", "{embed_dim: 36, depth: 3}")
        model = build_model(make_recipe("--arm", "plain_equal_flops", *said))
        assert (model.embed_dim, len(model.blocks)) == (36, 3)
        assert len(build_model(make_recipe("--arm", "llm", *said)).blocks) == DEPTH

    @pytest.mark.parametrize(
        ("name", "key", "layers"),
        [
            ("vision_language/easy_vqa_debug", "fusion_layers", "cross_modal_image_layers"),
            ("motion/vectornet_sumo_debug", "global_layers", "global_graph.layers"),
            ("rooms/furnished_rooms_debug", "layers", "situation_layers"),
        ],
    )
    def test_encoders_whose_depth_has_another_name(self, name, key, layers, llama_folder):
        small = ["--backbone.kwargs.hidden", "4"] if key in ("global_layers", "layers") else []
        recipe = load_recipe(name, ["--arm", "plain_equal_flops", "--graft.llm", str(llama_folder), *small])
        set_up_data(recipe)
        found = equal_flops(recipe)
        assert found.kwargs.keys() == {key}
        assert found.kwargs[key] > 1, "the tiny block is worth another layer"
        assert len(build_model(recipe).get_submodule(layers)) == found.kwargs[key]

    def test_other_arms_are_left_alone(self, make_recipe):
        recipe = make_recipe("--arm", "llm")
        assert choosing.settled(recipe, build_model) is recipe
        with pytest.raises(RecipeError, match="arm llm is not made as large"):
            equal_flops(recipe)

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            (("--backbone.kwargs", "{pretrained: true}"), "no pretrained weights of a deeper encoder"),
            (("--features.cached", "true"), "features.cached"),
            (("--backbone.name", "swin_tiny_patch4_window7_224", "--backbone.kwargs", SWIN), "backbone.equal_flops: {"),
        ],
    )
    def test_what_cannot_be_made_larger_is_named(self, make_recipe, options, said):
        with pytest.raises(RecipeError, match=said):
            build_model(make_recipe("--arm", "plain_equal_flops", *options))
