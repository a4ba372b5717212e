"""Control blocks: the same wiring with other weights, or with less than a block, to tell what matters.

    random_frozen   Is it the pretrained weights, or would any frozen block do?
                    Gaussian matrices at the pretrained Frobenius norm, gains constant at the
                    pretrained root mean square, biases zero.
    shuffled        Is it more than how the weights are distributed? The entries of each matrix
                    in random places, gains and biases as they are.
    spectrum        Is it more than the singular values? Each matrix U S V^T with the pretrained
                    S and random orthogonal U and V, gains and biases as they are.
    random_trained  Is it the capacity? (the paper's "Random") The same block, drawn as LLMs are
                    before their training, and trained with the rest: normal matrices of one
                    standard deviation, gains one, shifts and biases zero.
    attention_only  Is it attention? The pretrained block without its MLP.
    mlp_only        Is it the MLP? The pretrained block without attention, token by token.
    mlp             Is it the extra trained layers? (the paper's "+MLP") No block: GELU and a
                    trained LayerNorm between the mappers.
    linear          No block and nothing in its place: W2 W1 x.

Draws come from NumPy's Philox: a seed gives the same ones on every machine.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

from lmgraft.block import FrozenBlock
from lmgraft.block.load import place
from lmgraft.errors import BlockError
from lmgraft.graft.controls_rearranged import shuffled, spectrum
from lmgraft.graft.controls_redrawn import random_frozen, random_trained
from lmgraft.graft.controls_reduced import attention_only, linear, mlp, mlp_only

__all__ = [
    "CONTROLS",
    "apply_control",
    "attention_only",
    "linear",
    "mlp",
    "mlp_only",
    "random_frozen",
    "random_trained",
    "shuffled",
    "spectrum",
]

CONTROLS: dict[str, Callable[..., FrozenBlock]] = {
    "random_frozen": random_frozen,
    "shuffled": shuffled,
    "spectrum": spectrum,
    "random_trained": random_trained,
    "attention_only": attention_only,
    "mlp_only": mlp_only,
    "mlp": mlp,
    "linear": linear,
}


def apply_control(block: FrozenBlock, control: Mapping[str, Any]) -> FrozenBlock:
    """Repeat on `block` the control that a provenance records.

    Raises:
        BlockError: If the kind is unknown or `block` is not the one it was made from.
    """
    if control.get("kind") not in CONTROLS or not {"seed", "of"} <= control.keys():
        raise BlockError(f"control {control.get('kind')!r} is not known to this version", "update lmgraft")
    if control["of"] != block.provenance.digest:
        raise BlockError(
            f"the control was made from block {control['of'][:12]}, this is {block.provenance.digest[:12]}",
            "give the source that the run used",
        )
    options = {name: control[name] for name in ("std",) if name in control}
    stored = place(copy.deepcopy(block), control.get("stored"), None)
    return CONTROLS[control["kind"]](stored, control["seed"], **options)
