"""Each of timm's model modules is a host, and docs/timm.md says how."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm

from timm_modules import HEADER, PAST, SMALL, VERSION, Trial, row_of, trial
from tiny import long_but

pytestmark = pytest.mark.skipif(timm.__version__ != VERSION, reason=f"the table is of timm {VERSION}")


def rows_in_docs() -> list[str]:
    text = (Path(__file__).parent.parent / "docs" / "timm.md").read_text()
    begin, end = "<!-- timm: begin -->\n", "\n<!-- timm: end -->"
    lines = text[text.index(begin) + len(begin) : text.index(end)].splitlines()
    assert lines[:2] == HEADER
    return lines[2:]


def test_every_module_has_a_row() -> None:
    assert list(SMALL) == sorted(timm.list_modules())
    assert [row.split("`")[1] for row in rows_in_docs()] == list(SMALL)


@pytest.mark.slow
@pytest.mark.parametrize("module", long_but(SMALL, *list(SMALL)[::7], *PAST))
def test_the_row_is_what_the_adapter_says(module: str) -> None:
    assert row_of(module) in rows_in_docs()


@pytest.mark.parametrize("module", ["levit", "swin_transformer_v2_cr", "starnet", "xcit", *PAST])
def test_there_and_back(module: str) -> None:
    assert trial(module) == Trial(undone=True, trained=True, past=module in PAST)
