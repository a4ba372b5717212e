"""Every setting of the types that lmgraft has code of its own for: what loads is equal, or it is refused.

    python tests/config_sweep.py [TYPE ...]

For each type: the tiny model of `borrowed_sweep.py`, as it is; with a config.json that leaves out what is transformers'
default; and with one setting after another changed. Each layer that lmgraft loads is compared with transformers' own.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

import lmgraft
from borrowed_sweep import model_class, oracle_output, randomise_buffers_, text_ids, tiny_config
from lmgraft.block.family import FAMILIES
from lmgraft.borrowed.skeleton import choose_tower
from lmgraft.errors import LmgraftError
from tiny import randomise_, relative_error

NATIVE = [name for name in FAMILIES.names() if name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES]
_OF_NO_LAYER = {
    *("vocab_size", "use_cache", "tie_word_embeddings", "initializer_range", "max_position_embeddings", "layer_types"),
    *("hidden_size", "n_embd", "num_hidden_layers", "n_layer", "n_positions", "is_decoder", "add_cross_attention"),
    *("num_attention_heads", "word_embed_proj_dim", "return_dict", "output_attentions", "output_hidden_states"),
}
_YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 8.0, "original_max_position_embeddings": 32}


def other_values(key: str, value: Any) -> list[Any]:
    """What a setting is changed to."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, float):
        return [0.05 if "eps" in key else 1.7 * value + 0.3]
    if isinstance(value, str):
        return [act for act in ("gelu", "relu", "silu") if act != value] if "act" in key else []
    if isinstance(value, int):
        return [value + 1, 2 * value]
    return [0.5, 2, True] if value is None else [_YARN] if "rope" in key else []


def wrong(name: str) -> Iterator[str]:
    """What loads under a setting and is not transformers' layer, in a line each."""
    base = tiny_config(name)
    values = {key: value for key, value in base.to_dict().items() if key != "model_type"}
    default = type(base)().to_dict()
    changed = {f"{k}={v!r}": {k: v} for k in values if k not in _OF_NO_LAYER for v in other_values(k, values[k])}
    for label, change in {"as it is": {}, "defaults left out": {}, **changed}.items():
        left_out = [k for k in values if label == "defaults left out" and default.get(k) == values[k]]
        with tempfile.TemporaryDirectory() as folder:
            for error in _errors(name, type(base), values | change, left_out, Path(folder)):
                if not error <= 1e-5:
                    yield f"{name}, {label}: differs by {error:.2g}"


def _errors(name: str, kind: Any, values: dict[str, Any], left_out: Sequence[str], folder: Path) -> Iterator[float]:
    try:
        torch.manual_seed(0)
        model = randomise_(model_class(name)(kind(**values)), seed=3)
        randomise_buffers_(model)
        model.save_pretrained(folder)
        oracle = model_class(name).from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()
        tower = choose_tower(oracle, None)
    except Exception:  # noqa: BLE001 - transformers has no such model
        return
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k not in left_out}))
    for index, layer in enumerate(tower.layers):
        try:
            block = lmgraft.load_block(str(folder), index, final_norm="none")
        except LmgraftError:
            continue
        try:
            x, theirs = oracle_output(oracle, layer, **text_ids(name))
        except Exception:  # noqa: BLE001 - transformers cannot run it
            continue
        yield relative_error(block(x) - x, theirs - x)


def sweep(names: Sequence[str]) -> list[str]:
    """What is wrong with these types."""
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [line for name in names for line in wrong(name)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("types", nargs="*", help="model types; all that lmgraft has code for by default")
    lines = sweep(parser.parse_args().types or NATIVE)
    print("\n".join(lines) or "nothing loads and is wrong")  # noqa: T201 - a command


if __name__ == "__main__":
    main()
