"""What must not change unseen: the public API, the names of saved tensors, ten losses of a seeded training.

    python tests/test_golden.py     # writes tests/golden anew; a changed file is a change to be explained

Losses hold to 1e-5 relative: machines add in another order.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open

import lmgraft
from tiny import images, make_vit, random_block

GOLDEN = Path(__file__).parent / "golden"
OPTIONS: dict[str, dict[str, object]] = {
    "as published": {},
    "gated": {"residual": "gated"},
    "read_token": {"read_token": True},
    "norms": {"train_block": "norms"},
    "lora": {"train_block": "lora", "lora_rank": 2, "lora_targets": ("q", "up")},
}


def api() -> list[str]:
    """One line a public name: its signature, and of a class its public attributes."""
    lines = []
    for name in sorted(lmgraft.__all__):
        value = getattr(lmgraft, name)
        lines.append(f"{name}{inspect.signature(value)}")
        if inspect.isclass(value):
            bases = set(dir(torch.nn.Module))
            lines += [f"{name}.{attribute}" for attribute in sorted(set(dir(value)) - bases) if attribute[0] != "_"]
    return lines


def saved_names() -> dict[str, list[str]]:
    """Names of the graft's tensors in what `save_pretrained` writes, by the graft's options."""
    found = {}
    for label, options in OPTIONS.items():
        with TemporaryDirectory() as folder:
            lmgraft.save_pretrained(lmgraft.graft(make_vit(), random_block(), **options), folder)
            with safe_open(Path(folder) / "model.safetensors", "pt") as file:
                found[label] = sorted(name for name in file.keys() if name.startswith("graft."))  # noqa: SIM118
    return found


def losses() -> dict[str, list[float]]:
    """Ten steps of AdamW on one batch, in the planned and in the dense form."""
    found: dict[str, list[float]] = {}
    for form in ("auto", "dense"):
        torch.manual_seed(7)
        model = lmgraft.graft(make_vit(), random_block(dim=96), form=form).train()
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-4)
        found[form] = []
        for _ in range(10):
            loss = F.cross_entropy(model(images(4)), torch.tensor([0, 3, 5, 6]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            found[form].append(loss.item())
    return found


RECORDS: dict[str, Callable[[], object]] = {"api": api, "saved_names": saved_names}


@pytest.mark.parametrize("name", RECORDS)
def test_is_as_recorded(name: str) -> None:
    assert RECORDS[name]() == json.loads((GOLDEN / f"{name}.json").read_text())


def test_ten_losses_are_as_recorded() -> None:
    recorded = json.loads((GOLDEN / "losses.json").read_text())
    for form, values in losses().items():
        assert values == pytest.approx(recorded[form], rel=1e-5), form


def test_training_is_recorded_where_it_moves() -> None:
    recorded = json.loads((GOLDEN / "losses.json").read_text())
    assert all(values[-1] < 0.7 * values[0] for values in recorded.values())
    assert recorded["auto"] == pytest.approx(recorded["dense"], rel=1e-4)


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for name, make in {**RECORDS, "losses": losses}.items():
        (GOLDEN / f"{name}.json").write_text(json.dumps(make(), indent=1) + "\n")
