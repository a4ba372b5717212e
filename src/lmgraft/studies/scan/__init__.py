"""Which LLM, which layer, which position, before spending GPU days.

Cheap scores of every candidate, optionally short paired trainings, and how well the former agreed
with the latter. Nothing here looks at test items.
"""

from typing import TYPE_CHECKING

from lmgraft.registry import lazily
from lmgraft.studies.scan.config import ScanConfig

if TYPE_CHECKING:
    from lmgraft.studies.scan.results import Scan, read_scan
    from lmgraft.studies.scan.run import Plan, plan_scan, run_scan

__all__ = ["Plan", "Scan", "ScanConfig", "plan_scan", "read_scan", "run_scan"]

_RESULTS = ("Scan", "read_scan")
__getattr__ = lazily(
    __name__, dict.fromkeys(__all__, f"{__name__}.run") | dict.fromkeys(_RESULTS, f"{__name__}.results")
)
