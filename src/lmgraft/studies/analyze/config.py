"""What is looked at, and on how many items."""

from __future__ import annotations

from dataclasses import dataclass, field

from lmgraft.errors import RecipeError


@dataclass(frozen=True, kw_only=True)
class AnalyzeConfig:
    """What an analysis looks at."""

    limit: int = 500
    """Test items that are looked at, evenly spread over all."""
    causal: int = 200
    """Of these, items whose tokens are masked to see what is lost, evenly spread; 0: none."""
    coherence: int = 32
    """Items, one of each group, whose gradients are compared; nothing is trained. 0: none."""
    shares: list[float] = field(default_factory=lambda: [0.1, 0.25, 0.5])
    """Shares of an item's tokens that are masked."""
    layers: bool = True
    """Look behind each layer of the encoder too."""
    gallery: int = 3
    """Items of each kind in the gallery: best, median, worst, and drawn at random."""
    seed: int = 0
    """Of what is drawn at random."""
    batch_size: int | None = None
    """Items a pass; None takes the run's data.eval_batch_size, at most 64."""

    def __post_init__(self) -> None:
        for name, least in (
            ("limit", 1),
            ("causal", 0),
            ("coherence", 0),
            ("gallery", 0),
            ("seed", 0),
            ("batch_size", 1),
        ):
            value = getattr(self, name)
            if value is not None and value < least:
                raise RecipeError(f"--{name.replace('_', '-')} {value} must be at least {least}")
        if not self.shares or not all(0 < share < 1 for share in self.shares):
            raise RecipeError(f"--shares {self.shares} must lie between 0 and 1")
