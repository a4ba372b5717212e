"""The model of ScanQA and SQA3D (arXiv 2112.10482, 2210.07474) in plain PyTorch.

A detector's proposals are the tokens; they attend to a situation and then to a question, and are pooled with both. A
graft lies behind the last of these layers, before the pooling, with what is no object as padding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor, nn

from lmgraft.backbones.refusals import at_least_one, one_of, shares
from lmgraft.backbones.scene_qa.fusion import ACTIVATIONS, AttFlat, GuidedLayer, SelfLayer
from lmgraft.backbones.scene_qa.given import GIVEN, GivenObjects
from lmgraft.backbones.scene_qa.inputs import InputKind, ObjectInputs
from lmgraft.backbones.scene_qa.memory import Memory, asked_once
from lmgraft.backbones.scene_qa.vote_net import Detector, Proposals, Sizes
from lmgraft.backbones.scene_qa.words import UNKNOWN, TextEncoder
from lmgraft.contracts import is_traced
from lmgraft.errors import HostError
from lmgraft.geometry.points import take_points

POSE = 7
"""Numbers of a situation: x, y, z in metres and a quaternion x, y, z, w."""
_POSE_DROP_RATE = 0.1  # as SQA3D has it
FREEZABLE = ("words", "detector")
"""Parts of the model that need not be trained."""


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
        object_inputs: InputKind = "none",
        object_features: bool = True,
        init_gain: float | None = None,
        answer_prior: float | None = None,
        situation_head: bool = False,
        frozen: Sequence[str] = (),
        remembered_rooms: int = 4096,
    ) -> None:
        super().__init__()
        at_least_one(hidden=hidden, num_heads=num_heads, layers=layers, word_dim=word_dim)
        at_least_one(pool_hidden=pool_hidden, pooled=pooled, num_answers=num_answers)
        shares(drop_rate=drop_rate, word_drop_rate=word_drop_rate, head_drop_rate=head_drop_rate)
        one_of("object_inputs", object_inputs, get_args(InputKind))
        one_of("activation", activation, ACTIVATIONS)
        if hidden % num_heads:
            raise HostError(f"a width of {hidden} in {num_heads} heads", "hidden is a multiple of num_heads")
        if num_words <= UNKNOWN + 1:
            raise HostError(f"the texts have {num_words} words", "there is one at least beside padding and the unknown")
        if isinstance(frozen, str) or not set(frozen) <= set(FREEZABLE):
            raise HostError(
                f"backbone.kwargs.frozen={frozen!r}", f"a list, of {' and '.join(FREEZABLE)} or one of them"
            )
        if given_objects and (object_features or object_inputs == "none" or detector or "detector" in frozen):
            raise HostError(
                "data.given_objects leaves nothing to detect",
                "set backbone.kwargs.object_features: false and object_inputs: room or asker, and nothing of detector",
            )
        if not object_features and object_inputs == "none":
            raise HostError(
                "backbone.kwargs.object_features=false", "give object_inputs, or nothing tells objects apart"
            )
        self.embed_dim, self.frozen = hidden, tuple(frozen)
        of_detector = Sizes.of(detector or {})
        self.detector: Detector | GivenObjects = (
            GivenObjects(num_features, mean_sizes) if given_objects else Detector(num_features, mean_sizes, of_detector)
        )
        self.text = TextEncoder(num_words, word_dim, hidden, word_drop_rate)
        self.object_embed = (
            nn.Sequential(nn.Linear(of_detector.proposal_width, hidden), nn.GELU()) if object_features else None
        )
        features = num_features - GIVEN * given_objects
        self.input_embed = (
            None if object_inputs == "none" else ObjectInputs(object_inputs, len(mean_sizes), features, hidden)
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
            if gain <= 0:
                raise HostError(f"backbone.kwargs.init_gain={gain}", "give a number above 0, or null")
            for module in (m for name, part in self.named_children() if name != "detector" for m in part.modules()):
                if isinstance(module, nn.Linear):
                    nn.init.xavier_uniform_(module.weight, gain)
                    nn.init.zeros_(module.bias)
        if prior is not None:
            if not 0 < prior < 1:
                raise HostError(f"backbone.kwargs.answer_prior={prior}", "give a share above 0 and below 1, or null")
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
            inputs = self.input_embed.read(points, proposals, self.detector.mean_sizes, pose)
            objects = objects + self.input_embed(inputs, order)
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
