"""Which LLM, which layer, which position, before spending GPU days.

Cheap scores of every candidate, optionally short paired trainings, and how well the former agreed
with the latter. Nothing here looks at test items.
"""

from lmgraft.studies.scan.config import ScanConfig
from lmgraft.studies.scan.results import Scan, read_scan
from lmgraft.studies.scan.run import Plan, plan_scan, run_scan

__all__ = ["Plan", "Scan", "ScanConfig", "plan_scan", "read_scan", "run_scan"]
