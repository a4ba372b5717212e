"""A batch of traffic scenes; knows no file and no model.

Everything lies in the frame of the target: metres from where it is seen last, its heading along +x. The target is the
first agent. Agents and lanes are padded to the most of the batch; what is not valid is 0.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Scenes(NamedTuple):
    """Some scenes and where their targets go: A agents seen for S steps, L lanes of P points, T steps to come."""

    agents: Tensor
    """(B, A, S, 2) float32, positions in metres."""
    agent_valid: Tensor
    """(B, A, S) bool, whether the agent is seen at that step; False throughout for padding."""
    agent_types: Tensor
    """(B, A) int64, a row of `AGENT_TYPES`."""
    lanes: Tensor
    """(B, L, P, 2) float32, centrelines along their direction, in metres."""
    lane_valid: Tensor
    """(B, L, P) bool; False throughout for padding."""
    lane_attributes: Tensor
    """(B, L, 3) int64: whether in an intersection, turn, control; a row of `LANE_ATTRIBUTES` each."""
    future: Tensor
    """(B, T, 2) float32, where the target goes, in metres; NaN where the scene ends with the present."""
    index: Tensor  # type: ignore[assignment] # of tuples it is a method
    group: Tensor
    truth: Tensor
    """(B, A) bool, the agents that the target interacts with, where the data knows them."""
    ignored: Tensor
    """(B, A) bool: all agents of a scene that does not know, and padding."""

    @property
    def seen(self) -> tuple[Tensor, ...]:
        """What a model is called with, in order."""
        return self[:6]


AGENT_TYPES = ("vehicle", "pedestrian", "cyclist", "motorcyclist", "bus", "other")
"""Types of agents, as Argoverse 2's `object_type` has them; static ones and all others are "other"."""

LANE_ATTRIBUTES = {
    "intersection": ("unknown", "no", "yes"),
    "turn": ("unknown", "none", "left", "right"),
    "control": ("unknown", "no", "yes"),
}
"""What is known of a lane -> its values; the first stands for a map that does not say."""
