"""Which tokens stand out: magnitude and frequency of token features (paper, Section 6 and A.5)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from lmgraft.errors import HostError
from lmgraft.graft import find_graft, reading_all_tokens
from lmgraft.graft.hosts import find_host

Stage = Literal["encoder", "mapper_in", "attention", "feed_forward", "mapper_out"]
"""F_E, F_L1, F_LM^A, F_LM^F and F_L2 of the paper: what the tokens have passed so far."""

Center = Literal["tokens", "rows"]
"""Mean over all tokens (the text of A.5), or over the rows of the grid (the pseudo-code of Fig. E)."""


def magnitude(tokens: Tensor, grid: tuple[int, int], center: Center = "tokens") -> Tensor:
    """(B, T, C) -> (B, rows, columns) in [0, 1]: L2 norm of each token's distance to the mean."""
    return _distance_to_mean(tokens.float(), grid, center)


def frequency(tokens: Tensor, grid: tuple[int, int], center: Center = "tokens") -> Tensor:
    """As `magnitude`, of the phase angles of each token's Fourier transform along its channels."""
    return _distance_to_mean(torch.angle(torch.fft.fft(tokens.float(), dim=-1)), grid, center)


def _distance_to_mean(values: Tensor, grid: tuple[int, int], center: Center) -> Tensor:
    image = values.unflatten(1, grid)  # type: ignore[no-untyped-call]
    mean = image.mean(dim=(1, 2) if center == "tokens" else 1, keepdim=True)
    norm: Tensor = (image - mean).norm(dim=-1)
    low, high = norm.amin(dim=(1, 2), keepdim=True), norm.amax(dim=(1, 2), keepdim=True)
    # A constant map stands out nowhere: zero, not 0 / 0.
    return (norm - low) / (high - low).clamp_min(torch.finfo(norm.dtype).tiny)


@torch.no_grad()
def patch_tokens(model: nn.Module, images: Tensor, stage: Stage) -> tuple[Tensor, tuple[int, int]]:
    """Patch tokens (B, T, C) of `images` at a stage, and their grid.

    Args:
        model: A plain or grafted host that lmgraft knows; it is put into eval mode.
        images: (B, C, H, W), normalised as in training.
        stage: "encoder" for both; the others exist behind a graft only.

    Raises:
        HostError: If the model is not known, has no grid, or has no such stage.
    """
    host = find_host(model)
    if host is None or host.layout.grid is None or len(host.layout.grid) != 2:
        raise HostError(f"{type(model).__qualname__} has no known grid of tokens", "use a timm VisionTransformer")
    module, side = _stage_module(model, stage, host.layers[-1])
    caught: list[Tensor] = []

    def catch(_: nn.Module, args: tuple[Tensor, ...], output: Any = None) -> None:
        tokens = args[0] if output is None else host.output.take(output)
        caught.append(tokens.detach())

    handle = module.register_forward_pre_hook(catch) if side == "in" else module.register_forward_hook(catch)
    try:
        model.eval()
        with reading_all_tokens(model):
            model(images)
    finally:
        handle.remove()
    rows, columns = host.layout.grid
    return caught[0][:, host.layout.num_prefix_tokens :], (rows, columns)


def _stage_module(model: nn.Module, stage: Stage, last_layer: str) -> tuple[nn.Module, Literal["in", "out"]]:
    inserted = find_graft(model)
    if inserted is None:
        if stage != "encoder":
            raise HostError(f"stage {stage!r} exists behind a graft only", "graft the model, or use 'encoder'")
        return model.get_submodule(last_layer), "out"
    if inserted.block.opaque and stage == "attention":
        raise HostError("stage 'attention' exists in a block of lmgraft's code only", "use 'feed_forward'")
    if not len(inserted.block.layers):
        if stage in ("attention", "feed_forward"):
            raise HostError(f"stage {stage!r} exists in a transformer block only", "use mapper_in or mapper_out")
        last: nn.Module = nn.Identity()
    else:
        last = inserted.block.layers[-1]
    modules: dict[Stage, tuple[nn.Module, Literal["in", "out"]]] = {
        "encoder": (inserted.mapper_in, "in"),
        "mapper_in": (inserted.mapper_in, "out"),
        "attention": (getattr(last, "mlp_norm", last), "in"),
        "feed_forward": (inserted.block.final_norm, "in"),
        "mapper_out": (inserted.mapper_out, "out"),
    }
    return modules[stage]
