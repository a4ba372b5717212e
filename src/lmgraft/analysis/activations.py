"""Which tokens stand out: magnitude and frequency of token features (paper, Section 6 and A.5).

Knows no model: `observe` gives the tokens, `masks` asks whether those that stand out are the right ones.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Center = Literal["tokens", "rows"]
"""Mean over all tokens (the text of A.5), or over the rows of the grid (the pseudo-code of Fig. E)."""


def magnitude(
    tokens: Tensor, grid: tuple[int, ...] | None = None, center: Center = "tokens", padded: Tensor | None = None
) -> Tensor:
    """How far each token lies from the mean, scaled to [0, 1] in each sample (A.5).

    Args:
        tokens: (B, T, V).
        grid: Sizes of the tokens' grid, outermost first, for the shape of what is returned and for `center="rows"`.
        center: Which mean.
        padded: (B, T) bool: tokens that count for neither mean nor scale; they get 0.

    Returns:
        (B, *grid) with a grid, else (B, T).
    """
    return _distance_to_mean(tokens.float(), grid, center, padded)


def frequency(
    tokens: Tensor, grid: tuple[int, ...] | None = None, center: Center = "tokens", padded: Tensor | None = None
) -> Tensor:
    """As `magnitude`, of the phase angles of each token's Fourier transform along its channels."""
    if tokens.shape[1] == 0:
        return magnitude(tokens, grid, center, padded)
    spectrum = torch.fft.rfft(tokens.float(), dim=-1)
    # Real by symmetry, the first and, of an even number, the last: rounding would turn their angle from pi to -pi.
    real = [0, -1] if tokens.shape[-1] % 2 == 0 else [0]
    imag = spectrum.imag.index_fill(-1, torch.tensor(real, device=tokens.device) % spectrum.shape[-1], 0.0)
    # The other half of the spectrum has the same angles with the other sign, and so the same distances.
    twice = torch.full((spectrum.shape[-1],), 2**0.5, device=tokens.device)
    twice[real] = 1.0
    return _distance_to_mean(torch.atan2(imag, spectrum.real) * twice, grid, center, padded)


def distance_to_mean(tokens: Tensor, padded: Tensor | None = None) -> Tensor:
    """The L2 norm of each token's difference to the mean over tokens, unscaled: (B, T, V) -> (B, T)."""
    distance: Tensor = torch.linalg.vector_norm(tokens.float() - mean_of_tokens(tokens.float(), padded), dim=-1)
    return distance


def mean_of_tokens(values: Tensor, padded: Tensor | None = None) -> Tensor:
    """The mean over tokens that are not padded: (B, T, V), (B, T) -> (B, 1, V)."""
    if padded is None:
        return values.mean(1, keepdim=True)
    seen = (~padded).unsqueeze(-1).to(values.dtype)
    return (values * seen).sum(1, keepdim=True) / seen.sum(1, keepdim=True).clamp_min(1)


def _distance_to_mean(values: Tensor, grid: tuple[int, ...] | None, center: Center, padded: Tensor | None) -> Tensor:
    if center == "rows":
        if grid is None or padded is not None:
            raise ValueError("a mean over rows needs a grid without padded tokens: give one, or center='tokens'")
        image = values.unflatten(1, grid)  # type: ignore[no-untyped-call]
        mean = image.mean(1, keepdim=True).expand_as(image).flatten(1, len(grid))
    else:
        mean = mean_of_tokens(values, padded)
    scaled = scaled_to_one((values - mean).norm(dim=-1), padded)
    return scaled if grid is None else scaled.unflatten(1, grid)  # type: ignore[no-untyped-call]


def scaled_to_one(values: Tensor, padded: Tensor | None = None) -> Tensor:
    """(B, T) -> (B, T) with the smallest value of each sample at 0 and the largest at 1; a constant is 0, not 0 / 0."""
    if values.shape[1] == 0:  # a target alone: there is nothing but it to look at
        return values
    low_side, high_side = (values, values) if padded is None else (
        values.masked_fill(padded, float("inf")), values.masked_fill(padded, float("-inf"))
    )  # fmt: skip
    low, high = low_side.amin(1, keepdim=True), high_side.amax(1, keepdim=True)
    scaled = (values - low) / (high - low).clamp_min(torch.finfo(values.dtype).tiny)
    return scaled if padded is None else scaled.masked_fill(padded, 0.0)
