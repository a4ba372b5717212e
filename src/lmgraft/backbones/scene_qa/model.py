"""The model of ScanQA and SQA3D (arXiv 2112.10482, 2210.07474) in plain PyTorch.

A detector's proposals are the tokens; they attend to a situation and then to a question, and are pooled with both. A
graft lies behind the last of these layers, before the pooling, with what is no object as padding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from lmgraft.backbones.scene_qa.fusion import ACTIVATIONS, AttFlat, GuidedLayer, SelfLayer
from lmgraft.backbones.scene_qa.given import GIVEN, GivenObjects
from lmgraft.backbones.scene_qa.memory import Memory, asked_once
from lmgraft.backbones.scene_qa.vote_net import Detector, Proposals, Sizes
from lmgraft.backbones.scene_qa.words import TextEncoder, read_word_vectors
from lmgraft.backbones.weights import load_weights, open_weights
from lmgraft.contracts import is_traced
from lmgraft.errors import HostError, SourceError
from lmgraft.geometry.points import take_points
from lmgraft.geometry.poses import gaze

POSE = 7
"""Numbers of a situation: x, y, z in metres and a quaternion x, y, z, w."""
_POSE_DROP_RATE = 0.1  # as SQA3D has it
_ASKER_FEATURES, _NEAR = 6, 1e-3  # of `from_asker`; metres within which no direction is told
_FEATURE_SCALE = 4.0  # of what tokens are told of points: two colours are a tenth apart, too little to learn from
_FROZEN = ("words", "detector")
ObjectInputs = Literal["none", "room", "asker"]

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


class SceneAnswers(NamedTuple):
    """What the model says of questions about rooms."""

    answers: Tensor
    """(B, A) logits."""
    proposals: Proposals
    """What its detector says of the rooms."""
    pose: Tensor | None
    """(B, 7) where the asker is and looks, in training with `situation_head`."""


class SceneQA(nn.Module):
    """Rooms (B, N, 3 + F), situations (B, L), questions (B, M) and poses (B, 7), as far as known, to `SceneAnswers`.

    Args:
        num_words: Of the vocabulary of texts, with padding (0) and the unknown word (1).
        num_answers: A.
        mean_sizes: (C, 3), of each class of objects, metres.
        num_features: F, what points have beside their places.
        given_objects: Whether the last two features say which object a point is of and its class (`GIVEN`): tokens are
            these objects, and nothing is detected.
        detector: What is other than in `Sizes`.
        hidden: Width of the fusion's tokens: 256 in SQA3D, 768 in the paper.
        num_heads, layers, drop_rate: Of each stack of the fusion.
        activation: Of the fusion's feed-forward nets and of AttFlat: "gelu" as SQA3D has it, or MCAN's "relu".
        word_dim, word_drop_rate: Of word vectors.
        pool_hidden, pooled: Widths of AttFlat, inside and behind it.
        head_drop_rate: Before the answers.
        object_inputs: What the fusion is told of each proposal beside what the detector made of its surroundings.
            "none", as published: nothing says where objects lie to each other. "room": its box, its class as the
            detector believes it, and the mean of what its seeds have beside their places (colour, height). "asker":
            also where it lies from the asker, in metres and as a direction, by the pose; an agent knows its own.
        object_features: Whether tokens also have what the detector made of their surroundings; they need not where
            `object_inputs` tells them enough.
        init_gain: Of Xavier's first weights, which all linear maps but the detector's then have. None: PyTorch's, as
            published, whose gain is 0.58 at each map; what small models are to tell apart is then long lost in depth.
        answer_prior: The belief in each answer to begin with, by the head's biases; None: about a half, as published.
        situation_head: Predict the asker's place and view too, in training, from situation and objects (SQA3D's
            auxiliary task).
        frozen: What is not trained, of "words" and "detector"; a frozen detector is as in evaluation.
        remembered_rooms: Rooms of which a frozen detector's proposals are kept in memory; 0 for none.

    Raises:
        HostError: If an argument cannot be.
    """

    def __init__(
        self,
        *,
        num_words: int,
        num_answers: int,
        mean_sizes: Sequence[Sequence[float]],
        num_features: int = 4,
        given_objects: bool = False,
        detector: dict[str, Any] | None = None,
        hidden: int = 256,
        num_heads: int = 8,
        layers: int = 2,
        drop_rate: float = 0.1,
        activation: str = "gelu",
        word_dim: int = 300,
        word_drop_rate: float = 0.3,
        pool_hidden: int = 256,
        pooled: int = 512,
        head_drop_rate: float = 0.3,
        object_inputs: ObjectInputs = "none",
        object_features: bool = True,
        init_gain: float | None = None,
        answer_prior: float | None = None,
        situation_head: bool = False,
        frozen: Sequence[str] = (),
        remembered_rooms: int = 4096,
    ) -> None:
        super().__init__()
        if hidden % num_heads or min(hidden, layers, num_words - 2, num_answers, pool_hidden, pooled) < 1:
            raise HostError(
                f"{layers} layers of {hidden} in {num_heads} heads, {num_words} words, {num_answers} answers",
                "hidden is a multiple of num_heads, there is at least one of each, and two words are no words",
            )
        if object_inputs not in get_args(ObjectInputs):
            raise HostError(
                f"backbone.kwargs.object_inputs={object_inputs!r}", f"of {', '.join(get_args(ObjectInputs))}"
            )
        if activation not in ACTIVATIONS:
            raise HostError(f"backbone.kwargs.activation={activation!r}", f"of {' and '.join(ACTIVATIONS)}")
        if given_objects and (object_features or object_inputs == "none" or detector or "detector" in frozen):
            raise HostError(
                "data.given_objects leaves nothing to detect",
                "set backbone.kwargs.object_features: false and object_inputs: room or asker, and nothing of detector",
            )
        if not object_features and object_inputs == "none":
            raise HostError(
                "backbone.kwargs.object_features=false", "give object_inputs, or nothing tells objects apart"
            )
        if answer_prior is not None and not 0 < answer_prior < 1:
            raise HostError(f"backbone.kwargs.answer_prior={answer_prior}", "a share above 0 and below 1, or null")
        if unknown := sorted(set(frozen) - set(_FROZEN)):
            raise HostError(f"backbone.kwargs.frozen: {unknown[0]!r} is not known", f"of {' and '.join(_FROZEN)}")
        self.embed_dim, self.frozen = hidden, tuple(frozen)
        self.num_inputs = num_features - GIVEN * given_objects  # of a point, for tokens
        of_detector = Sizes.of(detector or {})
        self.detector: Detector | GivenObjects = (
            GivenObjects(num_features, mean_sizes) if given_objects else Detector(num_features, mean_sizes, of_detector)
        )
        self.text = TextEncoder(num_words, word_dim, hidden, word_drop_rate)
        self.object_embed = (
            nn.Sequential(nn.Linear(of_detector.proposal_width, hidden), nn.GELU()) if object_features else None
        )
        self.object_inputs = object_inputs
        widths = {"box": 6, "class": len(mean_sizes), "seen": self.num_inputs, "asker": _ASKER_FEATURES}
        if object_inputs != "asker":
            del widths["asker"]
        # A sum of maps, not one net of all together: that is learnt sooner (docs/rooms.md).
        self.input_embed = (
            None
            if object_inputs == "none"
            else nn.ModuleDict({name: nn.Linear(width, hidden) for name, width in widths.items()})
        )
        sizes = hidden, num_heads, drop_rate, activation
        self.situation_layers, self.question_layers = (
            nn.ModuleList(SelfLayer(*sizes) for _ in range(layers)) for _ in range(2)
        )
        self.by_situation, self.by_question = (
            nn.ModuleList(GuidedLayer(*sizes) for _ in range(layers)) for _ in range(2)
        )
        self.pools = nn.ModuleDict(
            {
                name: AttFlat(hidden, pool_hidden, pooled, drop_rate, activation)
                for name in ("situation", "question", "objects")
            }
        )
        self.head = _head(3 * pooled, hidden, num_answers, head_drop_rate)
        self.pose_head = _head(2 * pooled, hidden, POSE, _POSE_DROP_RATE) if situation_head else None
        self._draw(init_gain, answer_prior)
        self._memory = Memory(remembered_rooms)
        for name in self.frozen:
            (self.text.words if name == "words" else self.detector).requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> SceneQA:
        super().train(mode)
        if "detector" in self.frozen:
            self.detector.eval()
        return self

    def _draw(self, gain: float | None, prior: float | None) -> None:
        """Other first weights than PyTorch's, as far as asked for."""
        if gain is not None:
            for module in (m for name, part in self.named_children() if name != "detector" for m in part.modules()):
                if isinstance(module, nn.Linear):
                    nn.init.xavier_uniform_(module.weight, gain)
                    nn.init.zeros_(module.bias)
        if prior is not None:
            answers: Any = self.head[-1]
            nn.init.constant_(answers.bias, math.log(prior / (1 - prior)))

    def propose(self, points: Tensor) -> Proposals:
        """What the detector says of points (B, N, 3 + F), computed once for equal ones; a frozen one's are kept.

        Raises:
            HostError: If they are no such points.
        """
        if isinstance(self.detector, GivenObjects):
            given: Proposals = self.detector(points)
            return given
        if "detector" in self.frozen and not self.detector.training:
            self.detector.check(points)
            return self._memory.ask(self.detector, points)
        return asked_once(self.detector, points)

    def forward(self, points: Tensor, situation: Tensor, question: Tensor, pose: Tensor | None = None) -> SceneAnswers:
        proposals = self.propose(points)
        order, padded = objects_first(proposals.is_object)
        objects: Any = 0
        if self.object_embed is not None:
            objects = objects + self.object_embed(take_points(proposals.features, order))
        if self.input_embed is not None:
            inputs = self.input_features(points, proposals, pose)
            for name, embed in self.input_embed.items():
                objects = objects + embed(take_points(inputs[name], order))
        texts = []
        for ids, layers in ((situation, self.situation_layers), (question, self.question_layers)):
            tokens, no_word = self.text(ids)
            for layer in layers:
                tokens = layer(tokens, no_word)
            texts.append((tokens, no_word))
        for layers, guide in zip((self.by_situation, self.by_question), texts, strict=True):
            for layer in layers:
                objects = layer(objects, padded, *guide)
        read = zip(self.pools.values(), [*texts, (objects, padded)], strict=True)
        of_situation, of_question, of_objects = (pool(*tokens) for pool, tokens in read)
        predicted = None
        if self.pose_head is not None and self.training:  # as SQA3D has it, without the question's vector
            predicted = self.pose_head(torch.cat([of_situation, of_objects], -1))
        answers = self.head(torch.cat([of_situation, of_question, of_objects], -1))
        return SceneAnswers(answers, proposals, predicted)

    def input_features(self, points: Tensor, proposals: Proposals, pose: Tensor | None) -> dict[str, Tensor]:
        """What `object_inputs` tells of each proposal, (B, P, ...) by name, without gradient."""
        features = points[..., 3 : 3 + self.num_inputs]
        of_seeds = take_points(take_points(features, proposals.seed_index), proposals.gathered)
        inputs = {
            "box": proposals.boxes(self.detector.mean_sizes),
            "class": proposals.classes.softmax(-1),
            "seen": _FEATURE_SCALE * of_seeds.mean(2),
        }
        if self.object_inputs == "asker":
            inputs["asker"] = from_asker(proposals.centres, pose)
        return {name: one.detach() for name, one in inputs.items()}


def from_asker(places: Tensor, pose: Tensor | None) -> Tensor:
    """Places (B, P, 3) as the asker has them, (B, P, 6); 0 throughout without a pose.

    Metres ahead and to the left, how far it is, the direction as cosine (ahead) and sine (left), and 1.

    Args:
        places: In the room.
        pose: (B, 7) place and quaternion x, y, z, w, which turns -x to where one looks; NaN where it is not known.
    """
    if pose is None:
        return places.new_zeros(*places.shape[:2], _ASKER_FEATURES)
    known, pose = pose.isfinite().all(1), pose.nan_to_num()
    forward = nn.functional.normalize(gaze(pose), dim=1)[:, None]
    away = places[..., :2] - pose[:, None, :2]
    ahead, left = (away * forward).sum(-1), forward[..., 0] * away[..., 1] - forward[..., 1] * away[..., 0]
    far = torch.hypot(ahead, left)
    cosine, sine = (way / far.clamp_min(_NEAR) for way in (ahead, left))
    return torch.stack([ahead, left, far, cosine, sine, torch.ones_like(left)], -1) * known[:, None, None]


def objects_first(is_object: Tensor) -> tuple[Tensor, Tensor]:
    """Which proposals are the tokens (B, T) int64, and which of these are padding (B, T) bool.

    Objects come first, in their order. T is the most that a room of the batch has, one at least: what is no object in
    any room need not be computed. Under a tracer, or without numbers to look at, all are tokens.
    """
    order = (~is_object).to(torch.uint8).argsort(dim=1, stable=True)
    if not is_traced() and type(is_object) is Tensor:  # fake tensors have no numbers
        order = order[:, : max(1, int(is_object.sum(1).max()))]
    return order, ~is_object.gather(1, order)


def _head(width: int, hidden: int, out: int, drop_rate: float) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Dropout(drop_rate), nn.Linear(hidden, out))


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
    arguments["detector"] = of_size | (kwargs.get("detector") or {})
    pretrained, words = arguments.pop("pretrained", None) or {}, arguments.pop("words", None)
    if not isinstance(pretrained, dict) or not pretrained.keys() <= set(_FROZEN):
        raise HostError(
            f"backbone.kwargs.pretrained={pretrained!r} names no weights",
            "give {words: glove.6B.300d.txt, detector: runs/NAME/checkpoints/best.ckpt}, or one of the two",
        )
    pretrained = {part: source for part, source in pretrained.items() if source is not None}
    try:
        model = SceneQA(**arguments)
    except TypeError as error:
        raise HostError(f"SceneQA refused its arguments: {error}", "check backbone.kwargs") from None
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
