"""Information filtering: what tokens are on their way, which stand out, and whether they lie on the object."""

import copy
import math
from typing import get_args

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

import lmgraft
from lmgraft.analysis.activations import frequency, magnitude, scaled_to_one
from lmgraft.analysis.masks import (
    THRESHOLDS,
    average_precision,
    best_iou,
    centred_blob,
    covered,
    iou,
    mask_of_tokens,
    pointing,
    share,
)
from lmgraft.analysis.observe import Stage, observe
from lmgraft.errors import HostError
from tiny import images, make_vit


class TestObserve:
    def test_every_stage_of_a_graft(self, tiny_vit: nn.Module, llama_folder) -> None:
        x, plain = images(2), tiny_vit.eval()
        with torch.no_grad():
            (before,) = plain.forward_intermediates(x, indices=1, output_fmt="NLC", intermediates_only=True)
        noted = observe(plain, x)
        assert set(noted.at) == {"encoder"}
        assert noted.at["encoder"].grid == (4, 4)
        assert torch.equal(noted.at["encoder"].tokens, before)
        model = lmgraft.graft(plain, str(llama_folder))
        inserted, last = model.graft, model.graft.block.layers[-1]
        noted = observe(model, x)
        at = {stage: features.tokens for stage, features in noted.at.items()}
        assert set(at) == set(get_args(Stage))
        with torch.no_grad():
            full = model.forward_intermediates(x, indices=1, output_fmt="NLC", intermediates_only=True)[0]
            assert torch.equal(at["encoder"], before)
            assert torch.allclose(at["mapper_in"], inserted.mapper_in(before), atol=1e-6)
            assert torch.allclose(at["mapper_out"], full, atol=1e-6)
            after_mlp = at["attention"] + last.mlp(last.mlp_norm(at["attention"]))
            assert torch.allclose(at["feed_forward"], after_mlp, atol=1e-5)

    @pytest.mark.parametrize("training", [True, False])
    def test_the_model_is_left_as_it_was(self, tiny_vit: nn.Module, llama_folder, training: bool) -> None:
        model = lmgraft.graft(tiny_vit, str(llama_folder)).train(training)
        model.blocks[0].eval()
        modes = [module.training for module in model.modules()]
        hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
        with torch.no_grad():
            expected = copy.deepcopy(model).eval()(images(2))
        noted = observe(model, images(2), layers=True)
        assert torch.equal(noted.output, expected)
        assert [module.training for module in model.modules()] == modes
        assert [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()] == hooks
        broken = copy.deepcopy(model)
        broken.blocks[1].mlp.forward = None
        with pytest.raises(TypeError):
            observe(broken, images(2))
        assert torch.equal(observe(model, images(2)).output, expected)  # no catcher of attention was left behind

    def test_attention_of_what_the_head_reads(self, tiny_vit: nn.Module, llama_folder) -> None:
        model, x = lmgraft.graft(tiny_vit, str(llama_folder)).eval(), images(2)
        noted = observe(model, x, layers=True)
        layer, inserted = model.blocks[-1], model.graft
        with torch.no_grad():
            z = model.blocks[:-1](model.norm_pre(model._pos_embed(model.patch_embed(x))))
            qkv = layer.attn.qkv(layer.norm1(z)).unflatten(2, (3, layer.attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
            expected = (qkv[0][:, :, :1] @ qkv[1].transpose(-1, -2) * layer.attn.scale).softmax(-1)[:, :, 0, 1:]
            assert torch.allclose(noted.attention["encoder"], expected, atol=1e-6)
            last = inserted.block.layers[-1]
            normed = last.attention_norm(inserted.mapper_in(_behind(model, x)))
            q = last.attention.split_queries(last.attention.q(normed[:, :1]))
            k = last.attention.split_keys(last.attention.k(normed)).repeat_interleave(
                q.shape[1] // last.attention.num_kv_heads, 1
            )
            weights = last.attention.weights(q @ k.transpose(-1, -2), None)[:, :, 0, 1:]
        assert torch.allclose(noted.attention["block"], weights, atol=1e-6)
        assert torch.equal(noted.at["layer 2"].tokens, noted.at["encoder"].tokens)

    def test_a_mean_is_the_mean_of_all_rows(self, llama_folder) -> None:
        model = lmgraft.graft(make_vit(global_pool="avg", class_token=False), str(llama_folder)).eval()
        share = observe(model, images(2)).attention["block"]
        assert share.shape == (2, model.graft.block.config.num_heads, 16)
        assert torch.allclose(share.sum(-1), torch.ones(2, share.shape[1]), atol=1e-5)

    def test_maps(self, llama_folder) -> None:
        model = lmgraft.graft(timm.create_model("test_convnext", num_classes=4), str(llama_folder)).eval()
        x = torch.randn(2, 3, 64, 64)
        noted = observe(model, x, layers=True)
        rows, columns = noted.at["mapper_out"].grid
        assert noted.at["mapper_out"].tokens.shape == (2, rows * columns, model.graft.host.embed_dim)
        assert noted.at["layer 0"].grid[0] > rows
        with torch.no_grad():
            assert torch.equal(noted.output, model(x))

    def test_an_unknown_model(self) -> None:
        with pytest.raises(HostError, match="Sequential is no host"):
            observe(nn.Sequential(nn.Linear(3, 3)), torch.zeros(1, 3))


def _behind(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """All tokens behind the encoder's last layer, before the graft."""
    plain = lmgraft.ungraft(copy.deepcopy(model)).eval()
    return plain.blocks(plain.norm_pre(plain._pos_embed(plain.patch_embed(x))))


class TestWhatStandsOut:
    def test_numbers_worked_by_hand(self) -> None:
        # Tokens (0, 0), (0, 4), (3, 0) have mean (1, 4/3); distances 5/3, sqrt(1 + 64/9), sqrt(4 + 16/9).
        tokens = torch.tensor([[[0.0, 0.0], [0.0, 4.0], [3.0, 0.0]]])
        distances = [5 / 3, math.sqrt(73) / 3, math.sqrt(52) / 3]
        low, high = min(distances), max(distances)
        assert magnitude(tokens)[0].tolist() == pytest.approx([(d - low) / (high - low) for d in distances])

    def test_frequency_equals_numpys(self) -> None:
        tokens = torch.randn(2, 5, 6, dtype=torch.float64)
        spectrum = np.fft.fft(tokens.numpy(), axis=-1)
        spectrum.imag[..., [0, 3]] = 0  # what is real by symmetry, and nearly so by rounding
        angles = np.angle(spectrum)
        distance = np.linalg.norm(angles - angles.mean(1, keepdims=True), axis=-1)
        low, high = distance.min(1, keepdims=True), distance.max(1, keepdims=True)
        assert np.allclose(frequency(tokens).numpy(), (distance - low) / (high - low), atol=1e-5)

    @pytest.mark.parametrize("measure", [magnitude, frequency])
    def test_padded_tokens_count_for_nothing(self, measure) -> None:
        tokens = torch.randn(2, 7, 6)
        padded = torch.tensor([[False] * 5 + [True] * 2] * 2)
        far = torch.cat([tokens[:, :5], 1e4 * tokens[:, 5:]], 1)
        out = measure(far, padded=padded)
        assert torch.allclose(out[:, :5], measure(tokens[:, :5]), atol=1e-6)
        assert torch.equal(out[:, 5:], torch.zeros(2, 2))

    def test_a_grid_of_three_axes(self) -> None:
        tokens = torch.randn(2, 12, 5)
        assert torch.equal(magnitude(tokens, (2, 2, 3)).flatten(1), magnitude(tokens))
        by_time = tokens - tokens.view(2, 2, 6, 5).mean(1, keepdim=True).expand(-1, 2, -1, -1).reshape(2, 12, 5)
        expected = scaled_to_one(by_time.norm(dim=-1))
        assert torch.allclose(magnitude(tokens, (2, 2, 3), center="rows").flatten(1), expected, atol=1e-6)

    def test_a_constant_is_zero(self) -> None:
        assert torch.equal(scaled_to_one(torch.full((1, 4), 3.0)), torch.zeros(1, 4))


TRUTH = torch.tensor([[1, 1, 0, 0, 0, 0, 0, 0]], dtype=torch.bool)


class TestMasks:
    def test_an_item_without_tokens_has_nothing_that_stands_out(self) -> None:
        """A target alone on a road: its own token is left out of maps."""
        tokens, truth, padded = torch.zeros(2, 0, 4), torch.zeros(2, 0, dtype=torch.bool), torch.zeros(2, 0).bool()
        for values in (magnitude(tokens, padded=padded), frequency(tokens, padded=padded)):
            assert values.shape == (2, 0)
            for score in (pointing, average_precision, best_iou, share):
                assert score(values, truth, padded).isnan().all()
        assert covered(torch.zeros(2, 0)).shape == (2, 0)

    def test_a_map_of_the_object_itself_is_perfect_and_a_blind_one_is_not(self) -> None:
        seeing, blind = TRUTH.float(), (~TRUTH).float()
        for measure in (best_iou, average_precision, pointing):
            assert measure(seeing, TRUTH).item() == 1
            assert measure(blind, TRUTH).item() < 0.3

    def test_worked_by_hand(self) -> None:
        maps = torch.tensor([[0.95, 0.25, 0.55, 0.15, 0.0, 0.0, 0.0, 0.0]])
        assert iou(maps, TRUTH, 0.5).item() == pytest.approx(1 / 3)  # chosen: tokens 0 and 2
        assert iou(maps, TRUTH, 0.2).item() == pytest.approx(2 / 3)  # 0, 1 and 2
        assert best_iou(maps, TRUTH).item() == pytest.approx(2 / 3)
        assert average_precision(maps, TRUTH).item() == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
        assert pointing(maps, TRUTH).item() == 1
        assert THRESHOLDS[0] == 0.1
        assert THRESHOLDS[-1] == 0.9

    def test_average_precision_equals_a_published_one(self) -> None:
        torchmetrics = pytest.importorskip("torchmetrics.functional.classification")
        generator = torch.Generator().manual_seed(0)
        maps = (torch.rand(20, 30, generator=generator) * 8).round() / 8  # many equal values
        truth = torch.rand(20, 30, generator=generator) > 0.7
        expected = [torchmetrics.binary_average_precision(m, t.long()).item() for m, t in zip(maps, truth, strict=True)]
        assert average_precision(maps, truth).tolist() == pytest.approx(expected, abs=1e-6)

    def test_share_that_falls_on_the_object(self) -> None:
        assert share(torch.ones(1, 8), TRUTH).item() == 0.25
        amounts = torch.tensor([[3.0, 1.0, 2.0, 0.0, 0.0, 0.0, 2.0, 9.0]])
        assert share(amounts, TRUTH, torch.arange(8)[None] == 7).item() == 0.5
        assert share(torch.zeros(1, 8), TRUTH).isnan()

    def test_equal_tokens_share_the_point(self) -> None:
        assert pointing(torch.ones(1, 8), TRUTH).item() == 0.25

    def test_an_item_without_object_says_nothing(self) -> None:
        none = torch.zeros(1, 8, dtype=torch.bool)
        for measure in (best_iou, average_precision, pointing):
            assert measure(torch.rand(1, 8), none).isnan().all()
        assert average_precision(torch.rand(1, 8), ~none).isnan().all()

    def test_padded_tokens_are_neither_hit_nor_missed(self) -> None:
        maps, padded = torch.rand(1, 8), torch.tensor([[False] * 5 + [True] * 3])
        for measure in (best_iou, average_precision, pointing):
            assert measure(maps, TRUTH, padded).item() == pytest.approx(measure(maps[:, :5], TRUTH[:, :5]).item())

    def test_masks_over_tokens(self) -> None:
        mask = torch.zeros(1, 8, 8)
        mask[:, :4, :6] = 1
        assert mask_of_tokens(mask, (2, 2)).tolist() == [[True, True, False, False]]
        assert mask_of_tokens(mask, (2, 2), share=0.6).tolist() == [[True, False, False, False]]
        smooth = F.interpolate(mask[None], (11, 13))[0]
        assert mask_of_tokens(smooth, (4, 4)).sum() == 6

    def test_the_blob_has_the_objects_area_in_the_middle(self) -> None:
        truth = torch.zeros(2, 25, dtype=torch.bool)
        truth[0, :5], truth[1, :1] = True, True
        blob = centred_blob(truth, (5, 5))
        assert (blob > 0.9).sum(1).tolist() == [5, 1]
        assert blob[1].argmax() == 12
        assert set((blob[0] > 0.9).nonzero()[:, 0].tolist()) == {7, 11, 12, 13, 17}
        centre = torch.zeros(1, 25, dtype=torch.bool)
        centre[0, [7, 11, 12, 13, 17]] = True
        assert best_iou(centred_blob(centre, (5, 5)), centre).item() == 1
        with pytest.raises(ValueError, match="bool over tokens"):
            iou(blob, truth.float(), 0.5)
