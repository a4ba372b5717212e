"""CKA between what enters the block and what leaves it, both as the encoder's tokens see it."""

from __future__ import annotations

from torch import nn

from lmgraft.analysis.similarity import linear_cka
from lmgraft.errors import RunError
from lmgraft.studies.scan.lab import Lab, Place, block_outputs, draws_of
from lmgraft.studies.scan.scores.measured import Measured, over_draws

MOST_TOKENS = 4096
"""Of each image every k-th token is compared, so that there are at most so many."""


def measure(lab: Lab, place: Place, model: nn.Module) -> Measured:
    """Unbiased linear CKA for each draw of W1, over tokens of held-out images.

    Raises:
        RunError: If the encoder's tokens or the block's output do not vary.
    """
    tokens = place.val[: lab.config.cka_images]
    every = -(-tokens.shape[0] * tokens.shape[1] // MOST_TOKENS)
    ours = tokens[:, ::every].flatten(0, 1).float()
    draws = []
    for inserted in draws_of(lab, model):
        # All tokens go through the block, as attention needs them; some are compared.
        theirs = block_outputs(inserted, tokens, None, lambda y: y[:, ::every])
        try:
            draws.append(linear_cka(ours, theirs.flatten(0, 1)))
        except ValueError as error:
            raise RunError(str(error)) from None
    return over_draws(draws)
