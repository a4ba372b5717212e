"""How often `crossed_bootstrap` covered the truth in simulation."""

from __future__ import annotations

COVERED = {2: 0.902, 3: 0.945, 4: 0.949, 5: 0.946, 7: 0.945, 10: 0.942, 20: 0.937}
"""Number of seeds -> coverage at nominal 95 %, the worst of the simulated situations, where every item stands alone.
benchmarks/statistics_coverage.py --studies 5000 prints it; half a point is noise."""

COVERED_BY_GROUPS: dict[int, dict[int, float]] = {
    10: {2: 0.977, 3: 0.977, 4: 0.966, 5: 0.962, 7: 0.959, 10: 0.957, 20: 0.95},
    30: {2: 0.918, 3: 0.951, 4: 0.946, 5: 0.952, 7: 0.95, 10: 0.941, 20: 0.94},
    67: {2: 0.903, 3: 0.935, 4: 0.938, 5: 0.945, 7: 0.943, 10: 0.94, 20: 0.939},
    300: {2: 0.901, 3: 0.935, 4: 0.943, 5: 0.943, 7: 0.946, 10: 0.941, 20: 0.94},
}
"""Number of groups of items -> number of seeds -> the same, where groups are drawn.
benchmarks/statistics_coverage.py --tables groups --studies 2500 prints it; half a point is noise."""

NOMINAL = 0.95


def bootstrap_coverage(num_seeds: int, num_groups: int | None = None) -> float | None:
    """Measured coverage at nominal 95 %: of the nearest smaller numbers of seeds and groups that were simulated.

    Args:
        num_seeds: Of the contrast.
        num_groups: Of its test items; None where every item stands alone.

    Returns:
        The share in the worst of the situations in docs/statistics.md; None for fewer than were simulated.
    """
    simulated = _simulated(num_seeds, num_groups)
    return None if simulated is None else simulated[2]


def coverage_words(num_seeds: int, confidence: float = NOMINAL, num_groups: int | None = None) -> str:
    """For a table's or figure's note: nominal 95 %, covered 94 % in simulation with 5 seeds."""
    simulated = _simulated(num_seeds, num_groups) if abs(confidence - NOMINAL) < 1e-9 else None
    if simulated is None:
        return f"nominal {100 * confidence:g} %, coverage not measured"
    seeds, groups, covered = simulated
    of = f"{seeds} seeds" if groups is None else f"{seeds} seeds and {groups} groups of items"
    return f"nominal {100 * NOMINAL:g} %, covered {100 * covered:.1f} % at worst in simulation with {of}"


def _simulated(num_seeds: int, num_groups: int | None) -> tuple[int, int | None, float] | None:
    """Seeds and groups of the nearest smaller simulation, and what it covered."""
    groups = None if num_groups is None else max((n for n in COVERED_BY_GROUPS if n <= num_groups), default=0)
    row = COVERED if groups is None else COVERED_BY_GROUPS.get(groups, {})
    seeds = max((n for n in row if n <= num_seeds), default=0)
    return (seeds, groups, row[seeds]) if seeds else None
