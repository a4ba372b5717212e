"""The docs say what the code does: the table of families is the one in the code."""

import csv
import re
from pathlib import Path

import pytest
import yaml

from lmgraft.block.family import FAMILIES

ROOT = Path(__file__).parent.parent


def families_table() -> str:
    """`python tests/test_docs.py` prints it, to be pasted between the marks in docs/families.md."""
    lines = ["| `model_type` | read from | proved against transformers' own layer, with |", "|---|---|---|"]
    for name in FAMILIES.names():
        family = FAMILIES.load(name)
        styles = {"hf": "safetensors, .bin", "gguf": "GGUF", "meta": "consolidated.pth"}
        read = ", ".join(styles[style] for style in family.config_from)
        lines.append(f"| `{name}` | {read} | {family.verified} |")
    return "\n".join(lines)


def test_the_table_of_families_is_the_one_in_the_code() -> None:
    text = (ROOT / "docs" / "families.md").read_text()
    begin, end = "<!-- families: begin -->\n", "\n<!-- families: end -->"
    assert text[text.index(begin) + len(begin) : text.index(end)] == families_table()


def test_the_quickstart_table_in_the_readme_is_filled() -> None:
    text = (ROOT / "README.md").read_text()
    table = text[text.index("<!-- quickstart table: begin -->") : text.index("<!-- quickstart table: end -->")]
    assert all(f"| {arm} |" in table for arm in ("plain", "llm", "random_frozen"))


DOCS = [
    *(ROOT / name / "README.md" for name in (".", "benchmarks", "examples")),
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
]


@pytest.mark.parametrize("page", DOCS, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_page_holds_a_placeholder_or_a_dead_link(page: Path) -> None:
    text = page.read_text()
    assert not re.findall(r"^(?:[A-Z]{8,}|.*\b(?:TODO|TBD|FIXME|XXX)\b.*)$", text, re.MULTILINE)
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", text)
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_the_index_lists_every_page_once() -> None:
    listed = re.findall(r"^- \[(\w+\.md)\]\(\1\): ", (ROOT / "docs" / "README.md").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted({page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"})


def test_targets_and_examples_named_in_the_docs_exist() -> None:
    """Each `make` target, and each script that a page says to run."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    text = "".join(page.read_text() for page in DOCS) + (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    assert set(re.findall(r"^\s*(?:PYTHON=\S+ |- run: )?make ([a-z-]+)", text, re.MULTILINE)) <= targets
    scripts = set(re.findall(r"\b(?:benchmarks|examples|tests)/\w+\.py", text))
    assert len(scripts) > 3
    assert [script for script in sorted(scripts) if not (ROOT / script).exists()] == []


def test_the_version_to_cite_is_this_one() -> None:
    import lmgraft

    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == lmgraft.__version__
    assert citation["references"][0]["url"].endswith("2310.12973")


def test_recipes_and_studies_named_in_the_readme_exist() -> None:
    from lmgraft.recipes import list_recipes
    from lmgraft.studies.study.config import list_studies

    named = set(re.findall(r"\bimage/[a-z0-9_]+\b(?![{*])", (ROOT / "README.md").read_text()))
    named = {name for name in named if not name.endswith("_")}
    assert len(named) > 3
    assert named <= {*list_recipes(), *list_studies()}


def test_every_row_of_the_paper_has_its_recipe_with_its_figures() -> None:
    from lmgraft.recipes import list_recipes
    from lmgraft.recipes.recipe import find_recipe
    from lmgraft.studies.study.config import list_studies

    text = (ROOT / "docs" / "paper_tables.md").read_text()
    tables, controls = text.split("## Ablations")
    named = set(re.findall(r"`((?:image|points|video|motion|vision_language|rooms)/\w+)`", tables))
    headers = {name: find_recipe(name) for name in list_recipes()}
    of_tables = {
        name
        for name, header in headers.items()
        if re.search(r"^# Source: .*arXiv 2310.12973, Table [1-5]\b", header, re.MULTILINE)
        and not re.search(r"released|_224_", name)
    }
    assert named == of_tables
    for name in named:
        (expected,) = re.findall(r"^# Expected: (.*)$", headers[name], re.MULTILINE)
        figures = set(re.findall(r"\d+\.\d+", expected))
        assert figures & set(re.findall(r"\d+\.\d+", tables)), name
    assert set(re.findall(r"`(?:lmgraft study )?(\w+/\w+)`", controls)) <= {*list_studies()}


QUOTED = [f"fashion_{name}" for name in ("controls", "scale", "depth", "rates", "language")]
QUOTED += [
    "kicad_controls",
    "motion_controls",
    "motion_budget",
    "composed_controls",
    "question_controls",
    "retrieval_controls",
    "sumo_vectornet_controls",
    "sumo_mmtransformer_controls",
    "furnished_controls",
]


@pytest.mark.parametrize(("table", "scale", "digits"), [("comparisons", 1, 3), ("masking_comparisons", 100, 2)])
def test_the_evidence_page_quotes_what_an_analysis_planned(table: str, scale: int, digits: int) -> None:
    file = ROOT / "evidence" / "composed_controls" / "analysis" / "tables" / f"{table}.csv"
    page = (ROOT / "docs" / "evidence.md").read_text()
    rows = [row for row in csv.DictReader(file.read_text().splitlines()) if row["planned"] == "planned"]
    assert len(rows) == 4
    for row in rows:
        difference, low, high = (f"{scale * float(row[key]):+.{digits}f}" for key in ("difference", "low", "high"))
        assert difference in page, row
        assert f"{low} to {high}" in page, row


@pytest.mark.parametrize("name", QUOTED)
def test_the_evidence_page_quotes_the_evidence(name: str) -> None:
    from lmgraft.studies.study.read import read_study

    page, result = (ROOT / "docs" / "evidence.md").read_text(), read_study(ROOT / "evidence" / name)
    assert not result.missing or name == "fashion_language"  # whose exploratory arms lack two seeds, as the page says
    scale, digits = result.metric.scale, result.metric.digits or 2
    for contrast in (*result.contrasts, *(c for c in result.exploratory if c.reference == "plain")):
        low, high = (f"{scale * end:+.{digits}f}" for end in contrast.interval)
        quoted = [f"{scale * contrast.mean:+.{digits}f}", f"{low} to {high}"]
        # In running text a gain's interval stands without signs.
        unsigned = [quoted[0].strip("+"), f"{low} to {high}".replace("+", "")]
        bare = contrast not in result.contrasts and quoted[0] in page
        assert bare or all(text in page for text in quoted) or all(text in page for text in unsigned), contrast
    if name != "fashion_depth":
        for arm in result.arms:
            assert f"{scale * arm.mean:.{digits}f}" in page, arm.label


if __name__ == "__main__":
    import sys

    sys.stdout.write(families_table() + "\n")
