"""Masking tokens by rule: what is chosen, and that what is masked is not seen."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import lmgraft
from lmgraft.analysis.causal import amplification, elsewhere, masked_input, masked_keys, top_share
from lmgraft.analysis.masks import average_precision, central_tokens
from lmgraft.analysis.probes import attention_entropy, effective_rank
from lmgraft.backbones.vectornet import create
from lmgraft.errors import HostError
from lmgraft.graft import find_graft
from lmgraft.graft.hosts import find_host
from tiny import images, make_vit, random_block, randomise_
from tiny_scenes import SIZES, scenes
from tiny_scenes import one as one_scene


def draws(count: int, seed: int = 0) -> list[np.random.Generator]:
    return [np.random.default_rng([seed, item]) for item in range(count)]


def ball(count: int, draw: torch.Generator) -> Tensor:
    """Places (count, 3) within a ball."""
    directions = torch.nn.functional.normalize(torch.randn(count, 3, generator=draw), dim=1)
    return directions * torch.rand(count, 1, generator=draw) ** (1 / 3)


def streets(count: int, draw: torch.Generator) -> Tensor:
    """Places (count, 2) in metres: half along two crossing streets, half of any place between."""
    along = 50 * torch.randn(count // 2, generator=draw)
    aside = 3.5 * torch.randint(-2, 3, (count // 2,), generator=draw)
    roads = torch.stack([along, aside], 1)
    roads[::2] = roads[::2].flip(1)
    return torch.cat([roads, 30 * torch.randn(count - count // 2, 2, generator=draw)])


def clump(places: Tensor, count: int) -> Tensor:
    """Those nearest the first place."""
    return torch.zeros(len(places)).index_fill(0, (places - places[0]).norm(dim=1).argsort()[:count], 1.0).bool()


def two_clumps(places: Tensor, count: int) -> Tensor:
    """Those nearest two places that are far apart."""
    far = (places - places[0]).norm(dim=1)
    both = torch.minimum(far, (places - places[far.argmax()]).norm(dim=1))
    return torch.zeros(len(places)).index_fill(0, both.argsort()[:count], 1.0).bool()


def spread(places: Tensor, count: int) -> Tensor:
    """Each the farthest from those before it."""
    taken, far = [0], (places - places[0]).norm(dim=1)
    while len(taken) < count:
        taken.append(int(far.argmax()))
        far = torch.minimum(far, (places - places[taken[-1]]).norm(dim=1))
    return torch.zeros(len(places)).index_fill(0, torch.tensor(taken), 1.0).bool()


def nearest(places: Tensor, chosen: Tensor) -> float:
    """The mean distance of a chosen token to the nearest other."""
    apart = torch.cdist(places[chosen], places[chosen])
    return float(apart.fill_diagonal_(math.inf).amin(1).mean())


class TestChosen:
    @given(st.integers(1, 40), st.floats(0.01, 1.0), st.integers(0, 2**31))
    def test_a_share_of_what_is_not_padded(self, count: int, share: float, seed: int) -> None:
        draw = torch.Generator().manual_seed(seed)
        values = torch.rand(3, count, generator=draw)
        padded = torch.rand(3, count, generator=draw) < 0.3
        padded[:, 0] = False
        chosen = top_share(values, share, padded)
        there = (~padded).sum(1)
        assert chosen.sum(1).tolist() == (there * share).round().clamp_min(1).tolist()
        assert not (chosen & padded).any()
        for row, of, gone in zip(values, chosen, padded, strict=True):
            rest = ~of & ~gone
            assert not rest.any() or row[of].min() >= row[rest].max()

    def test_a_share_is_one(self) -> None:
        with pytest.raises(ValueError, match="a share of 0"):
            top_share(torch.rand(1, 4), 0)

    @given(st.integers(1, 5), st.integers(2, 6), st.integers(2, 6), st.integers(0, 2**31))
    def test_random_tokens_are_as_many_and_as_clumped(self, items: int, rows: int, columns: int, seed: int) -> None:
        chosen = torch.rand(items, rows * columns, generator=torch.Generator().manual_seed(seed)) < 0.3
        moved = elsewhere(chosen, draws(items, seed), grid=(rows, columns))
        assert moved.sum(1).tolist() == chosen.sum(1).tolist()
        for one, other in zip(chosen.unflatten(1, (rows, columns)), moved.unflatten(1, (rows, columns)), strict=True):
            for axis in (0, 1):  # round the edges each has as many neighbours
                assert (one & one.roll(1, axis)).sum() == (other & other.roll(1, axis)).sum()

    @given(st.integers(1, 4), st.integers(2, 30), st.floats(0.05, 1.0), st.booleans(), st.integers(0, 2**31))
    def test_random_tokens_are_as_many_of_each_items_own(
        self, items: int, count: int, share: float, placed: bool, seed: int
    ) -> None:
        draw = torch.Generator().manual_seed(seed)
        padded = torch.rand(items, count, generator=draw) < 0.4
        chosen = top_share(torch.rand(items, count, generator=draw), share, padded)
        places = torch.randn(items, count, 2, generator=draw).masked_fill(padded[..., None], torch.nan)
        moved = elsewhere(chosen, draws(items, seed), places=places if placed else None, grid=(count,), padded=padded)
        assert moved.sum(1).tolist() == chosen.sum(1).tolist()
        assert not (moved & padded).any()

    @pytest.mark.parametrize("placed", [True, False])
    def test_an_items_draw_knows_nothing_of_its_batch(self, placed: bool) -> None:
        """Nor of how far it is padded; and each draw is another."""
        draw = torch.Generator().manual_seed(0)
        places = torch.randn(1, 20, 2, generator=draw).expand(6, -1, -1)
        chosen = (torch.arange(20) < 5).expand(6, -1)
        given = {"places": places} if placed else {}
        whole = elsewhere(chosen, draws(6), **given)
        assert len({tuple(row) for row in whole.int().tolist()}) > 3
        more = torch.cat([chosen, torch.zeros(6, 7, dtype=torch.bool)], 1)
        padded = (torch.arange(27) >= 20).expand(6, -1)
        wide = {"places": torch.cat([places, places.new_full((6, 7, 2), torch.nan)], 1)} if placed else {}
        for item in range(6):
            alone = elsewhere(
                more[item : item + 1],
                draws(6)[item : item + 1],
                padded=padded[:1],
                **{name: of[:1] for name, of in wide.items()},
            )
            assert torch.equal(alone[0, :20], whole[item])

    @pytest.mark.parametrize("cloud", [ball, streets])
    @pytest.mark.parametrize("choose", [clump, two_clumps, spread])
    @pytest.mark.parametrize("count", [6, 16, 32])
    def test_random_tokens_in_space_are_as_clumped(
        self, cloud: Callable[[int, torch.Generator], Tensor], choose: Callable[[Tensor, int], Tensor], count: int
    ) -> None:
        draw = torch.Generator().manual_seed(count)
        places = torch.stack([cloud(64, draw) for _ in range(24)])
        chosen = torch.stack([choose(of, count) for of in places])
        near, far, shared = [], [], []
        moved = elsewhere(chosen, draws(24), places=places)
        anywhere = elsewhere(chosen, draws(24))
        for of, one, other, any_ in zip(places, chosen, moved, anywhere, strict=True):
            wanted = nearest(of, one)
            near.append(abs(nearest(of, other) / wanted - 1))
            far.append(abs(nearest(of, any_) / wanted - 1))
            shared.append(float((one & other).sum()) / count)
        assert np.mean(near) < 0.15  # the most for 6 in the densest place of all, to which no other is like
        assert np.mean(near) < np.mean(far) / 2
        assert not torch.equal(moved, chosen)
        if choose is not spread:  # the six that lie farthest apart are the outermost, and others are no such set
            assert count / 64 - 0.1 < np.mean(shared) < count / 64 + 0.2

    def test_alike_places_and_single_tokens(self) -> None:
        places = torch.zeros(1, 6, 3)
        for count in range(7):
            chosen = (torch.arange(6) < count)[None]
            assert elsewhere(chosen, draws(1), places=places).sum() == count
        last = torch.tensor([[False, False, True]])
        assert not any(elsewhere(last, draws(1, seed), places=places[:, :3])[0, 2] for seed in range(8))

    def test_of_an_item_without_tokens_none_is_chosen(self) -> None:
        assert not top_share(torch.rand(1, 4), 0.5, torch.ones(1, 4, dtype=torch.bool)).any()

    def test_amplified_is_what_moved_away_from_the_mean(self) -> None:
        before = torch.eye(5).expand(2, 5, 5)
        after = before.clone()
        after[:, 2] *= 10
        assert amplification(before, after).argmax(1).tolist() == [2, 2]
        assert amplification(before, before) == pytest.approx(torch.ones(2, 5))
        padded = torch.zeros(2, 5, dtype=torch.bool)
        padded[:, 2] = True
        assert amplification(before, after, padded)[:, 2].tolist() == [0, 0]


class TestMasked:
    @pytest.fixture
    def grafted(self, llama_folder) -> nn.Module:
        return lmgraft.graft(make_vit(), str(llama_folder)).eval()

    def test_at_the_input_nothing_of_a_token_is_seen(self, grafted: nn.Module) -> None:
        model, host, x = grafted, find_graft(grafted).host, images(2)
        side = x.shape[-1] // 4
        other = x.clone()
        other[:, :, :side, side : 2 * side] = 7.0  # the second of 16 patches
        chosen = torch.zeros(2, 16, dtype=torch.bool)
        chosen[:, 1] = True
        with torch.no_grad():
            assert not torch.allclose(model(x), model(other))
            before = model(x)
            with masked_input(model, host, chosen):
                assert torch.equal(model(x), model(other))
                assert not torch.allclose(model(x), before)
            assert torch.equal(model(x), before)
            with masked_input(model, host, torch.zeros_like(chosen)):
                assert torch.equal(model(x), before)

    def test_padding_does_not_count_for_what_a_masked_token_carries(self) -> None:
        """Each scene of a padded batch forecasts what it does alone."""
        model, seen = randomise_(create("vectornet", {**SIZES, "hidden": 6, "residual": True}), seed=5).eval(), scenes()
        host = find_host(model)
        there = torch.cat([seen[1].any(-1)[:, 1:], seen[4].any(-1)], 1)
        chosen = there & (there.cumsum(1) == 1)  # the first of each
        with torch.no_grad():
            plain = model(*seen).trajectories
            with masked_input(model, host, chosen, ~there):
                together = model(*seen).trajectories
            assert not torch.allclose(together, plain)
            for item in range(3):
                with masked_input(model, host, chosen[item, there[item]][None]):
                    alone = model(*one_scene(seen, item)).trajectories
                assert torch.allclose(together[item], alone[0], atol=1e-5)

    def test_as_keys_a_token_is_hidden_from_the_others_alone(self, grafted: nn.Module) -> None:
        inserted = find_graft(grafted)
        tokens = torch.randn(2, 17, 48, generator=torch.Generator().manual_seed(0))
        other = tokens.clone()
        other[:, 5] += 1.0
        chosen = torch.zeros(2, 16, dtype=torch.bool)
        chosen[:, 4] = True  # behind the class token
        padded = torch.zeros(2, 17, dtype=torch.bool)
        padded[:, 16] = True
        with torch.no_grad(), masked_keys(inserted, chosen):
            for mask in (None, padded):
                one, two = inserted(tokens, mask), inserted(other, key_padding_mask=mask)
                rest = [i for i in range(16) if i != 5]
                assert torch.allclose(one[:, rest], two[:, rest], atol=1e-6)
                assert not torch.allclose(one[:, 5], two[:, 5])
            expected = inserted(tokens)
        with torch.no_grad():
            hidden = torch.cat([torch.zeros(2, 1, dtype=torch.bool), chosen], 1)
            assert torch.equal(inserted(tokens, hidden), expected)
            assert not torch.allclose(inserted(tokens), expected)

    def test_a_pyramid_is_refused(self) -> None:
        shape = {"img_size": 64, "window_size": 2, "depths": (1, 1, 1, 1)}
        model = timm.create_model("swin_tiny_patch4_window7_224", **shape).eval()
        chosen = torch.zeros(1, 4, dtype=torch.bool)
        with (
            masked_input(model, find_host(model), chosen),
            pytest.raises(HostError, match="encoders that keep their tokens"),
            torch.no_grad(),
        ):
            model(torch.randn(1, 3, 64, 64))

    @pytest.mark.parametrize("where", ["input", "keys"])
    def test_pairs_with_others_are_refused(self, where: str) -> None:
        """A task that scores each item with all others calls the model with more than it was asked for."""
        model = lmgraft.graft(make_vit(), random_block()).eval()
        chosen = torch.zeros(2, 16, dtype=torch.bool)
        inserted = find_graft(model)
        assert inserted is not None
        masking = masked_input(model, find_host(model), chosen) if where == "input" else masked_keys(inserted, chosen)
        with masking, pytest.raises(HostError, match="called with 6 items where 2 are looked at"), torch.no_grad():
            model(images(6))


class TestProbes:
    def test_entropy(self) -> None:
        even, one = torch.full((1, 2, 8), 0.1), torch.eye(8)[:2].expand(1, 2, 8)
        assert attention_entropy(even).item() == pytest.approx(1)
        assert attention_entropy(one).item() == pytest.approx(0)
        both = torch.stack([even[0, 0], one[0, 0]])[None]
        assert attention_entropy(both).item() == pytest.approx(0.5)
        padded = torch.tensor([[False] * 4 + [True] * 4])
        assert attention_entropy(even, padded).item() == pytest.approx(1)
        uneven = torch.tensor([[[0.5, 0.25, 0.25]]])
        assert attention_entropy(uneven).item() == pytest.approx(1.5 * math.log(2) / math.log(3))

    def test_rank(self) -> None:
        directions = torch.linalg.qr(torch.randn(12, 12, generator=torch.Generator().manual_seed(0)))[0]
        for rank in (1, 3):
            corners = torch.eye(rank + 1) - 1 / (rank + 1)  # a simplex: equal in `rank` directions
            tokens = corners @ directions[: rank + 1]
            assert effective_rank(tokens[None]).item() == pytest.approx(rank, abs=1e-3)
            with_padding = torch.cat([tokens, 9 * torch.ones(2, 12)])[None]
            padded = torch.tensor([[False] * (rank + 1) + [True] * 2])
            assert effective_rank(with_padding, padded).item() == pytest.approx(rank, abs=1e-3)
        assert effective_rank(torch.ones(1, 4, 3)).item() == 0


def test_the_floor_in_space() -> None:
    places = torch.tensor([[[0.0, 0, 0], [5, 0, 0], [0, 5, 0], [0.1, 0, 0], [-5, 0, 0], [0, -5, 0]]])
    truth = torch.tensor([[True, False, False, True, False, False]])
    assert average_precision(central_tokens(truth, places), truth).item() == 1
