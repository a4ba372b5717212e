"""What long work says of itself."""

from __future__ import annotations

from collections.abc import Callable

Say = Callable[[str], None]
"""Told what happens, a line at a time."""


def silent(text: str) -> None:
    """Says nothing."""


def duration(seconds: float) -> str:
    """Roughly, in words."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 100 else f"{minutes / 60:.1f} h"
