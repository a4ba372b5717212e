"""The factory `scene_qa`: a model of questions about rooms by its name, with weights of its words and its detector."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from lmgraft.backbones.refusals import construct
from lmgraft.backbones.scene_qa.model import FREEZABLE, SceneQA
from lmgraft.backbones.scene_qa.words import read_word_vectors
from lmgraft.backbones.weights import load_weights, open_weights
from lmgraft.errors import HostError, SourceError

SIZES: dict[str, dict[str, Any]] = {
    "scene_qa": {},
    "scene_qa_tiny": {
        "hidden": 64,
        "num_heads": 4,
        "word_dim": 64,
        "pool_hidden": 64,
        "pooled": 64,
        "activation": "relu",
        "detector": {
            "levels": [
                [256, 0.3, 16, [32, 32, 64]],
                [128, 0.6, 16, [64, 64, 64]],
                [64, 1.2, 16, [64, 64, 64]],
            ],
            "width": 64,
            "proposals": 32,
            "proposal_width": 64,
        },
    },
}
"""Name -> arguments of `SceneQA`. The first is SQA3D's own; the second is for rooms of about 1,024 points on CPUs."""


def create(name: str, kwargs: dict[str, Any]) -> SceneQA:
    """Make a model of questions about rooms; the factory `scene_qa`.

    Args:
        name: One of `SIZES`.
        kwargs: Those of `SceneQA`; `detector` is added to that of the size. `words`: the texts' vocabulary, in order.
            `pretrained`: {words: GloVe's text file, detector: a checkpoint of such a model}, either of them; false
            where trained weights are to be loaded.

    Raises:
        HostError: If the name or an argument is unknown, or weights do not fit.
        LmgraftError: If weights cannot be read.
    """
    if name not in SIZES:
        raise HostError(f"there is no encoder of rooms {name!r}", f"backbone.name is one of {', '.join(SIZES)}")
    arguments = SIZES[name] | kwargs
    of_size = {} if arguments.get("given_objects") else SIZES[name].get("detector", {})
    of_recipe = kwargs.get("detector") or {}
    if not isinstance(of_recipe, dict):
        raise HostError(f"backbone.kwargs.detector={of_recipe!r}", "give its keys: {width: 64, proposals: 32}")
    arguments["detector"] = of_size | of_recipe
    pretrained, words = arguments.pop("pretrained", None) or {}, arguments.pop("words", None)
    if not isinstance(pretrained, dict) or not pretrained.keys() <= set(FREEZABLE):
        raise HostError(
            f"backbone.kwargs.pretrained={pretrained!r} names no weights",
            "give {words: glove.6B.300d.txt, detector: runs/NAME/checkpoints/best.ckpt}, or one of the two",
        )
    pretrained = {part: source for part, source in pretrained.items() if source is not None}
    model = construct(SceneQA, "SceneQA", arguments)
    if "words" in pretrained:
        _load_words(model, str(pretrained["words"]), words)
    if "words" in model.frozen and "words" not in pretrained and kwargs.get("pretrained") is not False:
        raise HostError(
            "backbone.kwargs.frozen: words without vectors would stay as they were drawn",
            "give backbone.kwargs.pretrained.words, or take words out of frozen",
        )
    if "detector" in pretrained:
        load_detector(model, str(pretrained["detector"]))
    return model


def _load_words(model: SceneQA, source: str, words: Sequence[str] | None) -> None:
    table = model.text.words.weight
    if words is None or len(words) != len(table):
        raise HostError(
            f"backbone.kwargs.pretrained.words: vectors for {len(table)} words, and backbone.kwargs.words has "
            f"{0 if words is None else len(words)}",
            "give all words of the texts' vocabulary, by number",
        )
    vectors = read_word_vectors(Path(source).expanduser(), words)
    if vectors.shape != table.shape:
        raise HostError(
            f"{source} has vectors of {vectors.shape[1]} numbers, and backbone.kwargs.word_dim is {table.shape[1]}",
            f"set backbone.kwargs.word_dim to {vectors.shape[1]}",
        )
    with torch.no_grad():
        table.copy_(vectors)


def load_detector(model: SceneQA, source: str) -> None:
    """Load the detector of a model like this one, from a run's checkpoint or a saved model's weights.

    Raises:
        HostError: If the file has no detector, or one of another size.
        LmgraftError: If it cannot be read.
    """
    place = "detector."
    try:
        checkpoint = open_weights(source)
    except SourceError as error:
        train = "lmgraft train rooms/furnished_detector --out runs/detector, if it is yours to train; otherwise "
        raise SourceError(error.message, train + error.remedy) from error
    names = {name: name.removeprefix("model.") for name in checkpoint.names()}
    inner = {name: short.removeprefix(place) for name, short in names.items() if short.startswith(place)}
    if not inner:
        raise HostError(f"{source} holds no detector", "give a checkpoint of a run with backbone.factory: scene_qa")
    tensors = {short: checkpoint.read(name) for name, short in inner.items()}
    load_weights(model.detector, tensors, source, _none)


def _none(name: str) -> bool:
    return False
