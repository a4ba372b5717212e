"""How often `crossed_bootstrap` covered the truth in simulation."""

from __future__ import annotations

COVERED = {2: 0.902, 3: 0.945, 4: 0.949, 5: 0.946, 7: 0.945, 10: 0.942, 20: 0.937}
"""Number of seeds -> coverage at nominal 95 %, the worst of the simulated situations.
benchmarks/statistics_coverage.py --studies 5000 prints it; half a point is noise."""

NOMINAL = 0.95


def bootstrap_coverage(num_seeds: int) -> float | None:
    """Measured coverage at nominal 95 %: of the nearest smaller number of seeds that was simulated.

    Returns:
        The share in the worst of the situations in docs/statistics.md; None below two seeds.
    """
    known = [n for n in COVERED if n <= num_seeds]
    return COVERED[max(known)] if known else None


def coverage_words(num_seeds: int, confidence: float = NOMINAL) -> str:
    """For a table's or figure's note: nominal 95 %, covered 94 % in simulation with 5 seeds."""
    covered = bootstrap_coverage(num_seeds) if abs(confidence - NOMINAL) < 1e-9 else None
    if covered is None:
        return f"nominal {100 * confidence:g} %, coverage not measured"
    simulated = max(n for n in COVERED if n <= num_seeds)
    return f"nominal {100 * NOMINAL:g} %, covered {100 * covered:.1f} % at worst in simulation with {simulated} seeds"
