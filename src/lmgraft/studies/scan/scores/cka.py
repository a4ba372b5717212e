"""CKA between what enters the block and what leaves it, both as the encoder's tokens see it."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn

from lmgraft.analysis.similarity import linear_cka
from lmgraft.errors import RunError
from lmgraft.studies.scan.lab import Lab, Place, block_outputs, draws_of
from lmgraft.studies.scan.scores.measured import Measured, over_draws
from lmgraft.studies.tokens import TokenBatch

MOST_TOKENS = 4096
"""Of each item every k-th token is compared, so that there are about so many; padded ones are left out."""


def measure(lab: Lab, place: Place, model: nn.Module) -> Measured:
    """Unbiased linear CKA for each draw of W1, over tokens of held-out items.

    Raises:
        RunError: If the encoder's tokens or the block's output do not vary.
    """
    # All tokens go through the block, as attention needs them; some are compared.
    tokens = replace(place.val[: lab.config.cka_images], reads=None)
    count = tokens.x[..., 0].numel() if tokens.padded is None else int((~tokens.padded).sum())
    every = -(-count // MOST_TOKENS)

    def some(y: Tensor, part: TokenBatch) -> Tensor:
        return part.unpadded(y.expand(-1, part.x.shape[1], -1), every)  # of a read token every token gets the output

    ours = tokens.unpadded(tokens.x, every).float()
    draws = []
    for inserted in draws_of(lab, model):
        try:
            draws.append(linear_cka(ours, block_outputs(inserted, tokens, some)))
        except ValueError as error:
            raise RunError(str(error)) from None
    return over_draws(draws)
