"""A study's page, tables and figures, from made-up results: every arm everywhere, numbers as the data has them."""

import csv
import io
import json
import math
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from pages import Page
from PIL import Image
from study_results import CLASSES, CORRUPTIONS, breakdown, compare, controls, depth, make_arm, make_study

from lmgraft.analysis.bootstrap_coverage import COVERED_BY_GROUPS
from lmgraft.analysis.verdict import Finding
from lmgraft.contracts import Metric
from lmgraft.registry import METRICS
from lmgraft.report.drawing import inline, short, write_figures
from lmgraft.report.study import write_report
from lmgraft.report.study.breakdown import MOST_ROWS, shown_names
from lmgraft.report.study.depth import by_layer
from lmgraft.report.study.figures import FIGURES, arm_colors, draw_all
from lmgraft.report.study.page import marks, page
from lmgraft.report.study.tables import (
    arms_sheet,
    at_the_edge,
    breakdown_csv,
    breakdown_table,
    contrasts_sheet,
    grid_table,
    questions_table,
    seeds_table,
    terminal_table,
    write_tables,
)
from lmgraft.report.table import Table, latex, latex_text, markdown
from lmgraft.studies.study.read import read_study
from lmgraft.studies.study.results import Band, Breakdown, worded
from lmgraft.words import numbers as write
from lmgraft.words import paper


def arms_table(result):
    return arms_sheet(result).table()


def planned_table(result):
    return contrasts_sheet(result, result.contrasts).table()


def drawn(result):
    """The figures that there are."""
    return {name: figure for name, figure in draw_all(result).items() if figure is not None}


def rows_of(text):
    return list(csv.DictReader(io.StringIO(text)))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The study of controls with all its files."""
    out = tmp_path_factory.mktemp("study")
    return controls(), write_report(controls(), out)


def test_page_is_whole_and_fetches_nothing(written):
    result, file = written
    html = file.read_text(encoding="utf-8")
    reader = Page(html)
    assert "script" not in reader.tags
    assert "link" not in reader.tags
    assert "img" not in reader.tags
    assert "@import" not in html
    assert "url(http" not in html
    # Namespaces of SVG are names, not addresses that anything fetches.
    assert set(re.findall(r'[\w:]+="https?://[^"]*', html)) <= {
        'xmlns="http://www.w3.org/2000/svg',
        'xmlns:xlink="http://www.w3.org/1999/xlink',
        'xmlns:cc="http://creativecommons.org/ns#',
        'xmlns:dc="http://purl.org/dc/elements/1.1/',
        'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#',
        'rdf:resource="http://purl.org/dc/dcmitype/StillImage',
    }
    links = [address for address in reader.addresses if not address.startswith("#")]
    assert links
    assert all((file.parent / link).is_file() for link in links)
    for sentence in (*result.verdict, *result.notes, *(arm.question for arm in result.arms), *result.commits):
        assert sentence in reader.text
    for arm in result.arms:
        assert arm.block is None or arm.block["digest"] in reader.text
        assert write.value(arm.mean, result.metric) in reader.texts
        for one in arm.values.values():
            assert f"{100 * one:.2f}" in reader.texts
    assert "recipe: image/fashion_vit" in reader.text
    assert "torch 2.14.1" in reader.text
    assert html.count("<svg") == len(list((file.parent / "figures").glob("*.svg"))) == 6


def test_charts_are_on_white_paper_in_the_dark_too(written):
    html = written[1].read_text(encoding="utf-8")
    css = html[html.index("<style>") : html.index("</style>")]
    assert re.search(r"\.figure \{ background: #fff; \}", css)
    assert "var(" not in html[html.index("</style>") :]


def test_findings_have_colour_and_sign_by_their_kind():
    kinds = {
        "helps": ("helps", "▲"),
        "hurts": ("hurts", "▼"),
        "better": ("helps", "▲"),
        "worse": ("hurts", "▼"),
        "not shown": ("unclear", "○"),
        "equivalent": ("equal", "="),
        "explained": ("equal", "="),
        "equal": ("equal", "="),
        "no spread": ("caution", "!"),
        "few seeds": ("caution", "!"),
    }
    result = controls()
    findings = [Finding(kind=kind, contrast=result.contrasts[1]) for kind in kinds]
    first, folded = marks(replace(result, findings=findings))
    every = folded or first
    assert [(m.style, m.sign) for m in every if m.style != "continued"] == list(kinds.values())
    reader = Page(page(result, {}))
    styles = ("helps", "hurts", "unclear", "equal", "caution", "continued")
    assert [style for style in reader.styles() if style in styles]
    changed = Finding(kind="setting changed", key="margin", before=0.005, now=0.01)
    assert marks(replace(result, findings=[changed]))[0][0].style == "caution"


def test_the_equivalence_that_was_taken_for_a_plain_statement_is_shown_as_one():
    """A small gain, and a control that does as well: "... equivalent ... not shown to exceed the margin ..."."""
    values = {"plain": 0.9, "llm": 0.903, "random_frozen": 0.903}
    arms = [make_arm(kind, kind, mean, spread=0.0003, rng=1) for kind, mean in values.items()]
    result = make_study(arms, compare(arms, [("llm", "plain"), ("llm", "random_frozen")]))
    [helps, equivalent] = result.findings
    assert (helps.kind, equivalent.kind) == ("helps", "equivalent")
    [text] = Page(page(result, {})).of_style("equal")
    assert text.startswith("=")
    assert "not shown to exceed the margin" in text


def test_a_long_verdict_shows_first_what_was_shown_and_hides_nothing():
    c = controls().contrasts[0]
    tally = Finding(kind="tally", counts={"blocks": 13, "better": 1, "worse": 0, "not shown": 12})
    look = Finding(kind="few seeds", contrast=c)
    nothing = [Finding(kind="not shown", contrast=replace(c, arm=f"arm_{i}")) for i in range(12)]
    many = [Finding(kind="helps", contrast=c), *nothing, tally, look]
    first, folded = marks(controls(findings=many))
    assert [mark.style for mark in first] == ["helps", "tally", "caution"]
    assert len(folded) == 15 + 12
    html = page(controls(findings=many), {})
    assert all(mark.sentence in Page(html).text for mark in folded)
    assert f"All {len(folded)} sentences, 12 of them of what was not shown" in html


@pytest.mark.parametrize(("kind", "number"), [("helps", 12), ("helps", 2), ("not shown", 12)])
def test_cautions_never_fold_away(kind, number):
    c = controls().contrasts[0]
    cautions = [Finding(kind=k, contrast=c, names=("b",)) for k in ("no spread", "other items", "few seeds")]
    cautions += [Finding(kind="no own contrast", names=("b",)), Finding(kind="failed runs", names=("b",))]
    cautions += [Finding(kind="seeds changed", before=2, now=3), Finding(kind="stated change", key="A note.")]
    notes = [Finding(kind="uncommitted changes")]
    result = controls(findings=[*([Finding(kind=kind, contrast=c)] * number), *cautions, *notes])
    first, _ = marks(result)
    assert sum(mark.style == "caution" for mark in first) == len(cautions)
    result = worded(replace(result, notes=["Of the study's own file."]))
    html = page(result, {})
    assert len(result.notes) == 1 + 4  # its own, what failed, what was changed twice, and what is no caution
    assert all(f"<li>{write_html(note)}</li>" in html.split("Limits, and what would")[1] for note in result.notes)


def write_html(text):
    return text.replace("'", "&#39;")


def test_page_says_what_intervals_and_small_llms_do_not():
    html = page(controls(), {})
    assert "Intervals are not corrected for the number of contrasts" in html
    assert "seeds do not spread" not in html
    assert paper.SMALL_LLMS in page(depth(), {"layers": '<svg viewBox="0 0 9 9"></svg>'})


def test_without_spread_there_are_dashes_and_no_certainty():
    arms = [make_arm("plain", "plain", 0.9, spread=0), make_arm("llm", "llm", 0.95, spread=0)]
    planned = [replace(c, bootstrap=None) for c in compare(arms, [("llm", "plain")])]
    result = make_study(arms, planned)
    row = planned_table(result).rows[0]
    assert row[1] == "+5.00"
    assert row[2:8] == (write.NONE,) * 6
    assert row[-1] == "not shown"
    held = rows_of(contrasts_sheet(result, [*result.contrasts, *result.exploratory]).csv())[0]
    assert float(held["mean"]) == pytest.approx(0.05)
    assert {held[name] for name in ("low", "high", "p", "p_holm", "p_equivalence", "detectable")} == {""}
    text = Page(page(result, {})).text
    assert "seeds do not spread" in text
    assert not re.search(r"\+5\.00 to|0\.00 points would|under 0\.00", text)
    assert "contrasts" in drawn(result)


def test_few_groups_are_said_with_what_their_interval_covered():
    arms = [make_arm("plain", "plain", 0.9), make_arm("llm", "llm", 0.95), make_arm("mlp", "mlp", 0.94)]
    many, few = compare(arms, [("llm", "plain"), ("llm", "mlp")])
    text = Page(page(make_study(arms, [replace(many, groups=400), replace(few, groups=12)]), {})).text
    assert (
        f"covered {100 * COVERED_BY_GROUPS[10][5]:.1f} % at worst in simulation with 5 seeds and 10 groups of items"
        in text
    )
    assert "that belong together are drawn as one" in text
    alone = Page(page(make_study(arms, [replace(few, groups=9)]), {})).text
    assert "coverage not measured" in alone


def test_figures_are_valid_svg_with_text_and_sharp_png(written):
    result, file = written
    folder = file.parent / "figures"
    names = {"arms", "contrasts", "curves", "cost", "breakdown_class", "breakdown_corruption"}
    assert {path.stem for path in folder.iterdir()} == names
    for name in names:
        root = ElementTree.fromstring((folder / f"{name}.svg").read_text(encoding="utf-8"))
        words = " ".join(node.text or "" for node in root.iter("{http://www.w3.org/2000/svg}text"))
        assert words, name
        if name in ("arms", "contrasts", "curves", "cost"):
            assert all(arm.label in words for arm in result.arms), name
        with Image.open(folder / f"{name}.png") as image:
            assert round(image.info["dpi"][0]) == 200
            assert image.width > 1000
            assert np.asarray(image.convert("L"))[0, 0] == 255
    assert all(name.replace("_", " ") in (folder / "breakdown_corruption.svg").read_text() for name in CORRUPTIONS)
    assert all(name in (folder / "breakdown_class.svg").read_text() for name in CLASSES)


def test_csv_holds_every_number_as_measured(written):
    result, file = written
    arms = rows_of((file.parent / "tables" / "arms.csv").read_text(encoding="utf-8"))
    assert [row["label"] for row in arms] == [arm.label for arm in result.arms]
    for row, arm in zip(arms, result.arms, strict=True):
        assert float(row["mean"]) == arm.mean
        assert (float(row["low"]), float(row["high"])) == arm.interval
        assert {seed: float(row[f"seed_{seed}"]) for seed in result.seeds} == arm.values
        assert float(row["train_flops_ratio"]) == arm.cost.train_flops / result.arms[0].cost.train_flops
        assert int(row["peak_memory"]) == arm.cost.peak_memory
    contrasts = rows_of((file.parent / "tables" / "contrasts.csv").read_text(encoding="utf-8"))
    both = [*result.contrasts, *result.exploratory]
    for row, c in zip(contrasts, both, strict=True):
        assert (row["arm"], row["reference"], row["outcome"]) == (c.arm, c.reference, c.outcome)
        assert float(row["mean"]) == c.mean
        assert float(row["p"]) == c.p
        assert float(row["bootstrap_low"]) == c.bootstrap[0]
        assert row["p_holm"] == ("" if c in result.exploratory else repr(c.p_holm))
    parts = rows_of((file.parent / "tables" / "breakdown.csv").read_text(encoding="utf-8"))
    assert len(parts) == 3 * (len(CLASSES) + len(CORRUPTIONS))
    assert float(parts[0]["low"]) == result.breakdown[0].interval[0]


def test_tables_show_the_numbers_of_the_data():
    result = controls()
    table = planned_table(result)
    row, c = dict(zip(table.header, table.rows[0], strict=True)), result.contrasts[0]
    assert row["contrast"] == "llm - plain"
    assert row["difference, points"] == f"{100 * c.mean:+.2f}"
    assert row["95 % interval"] == f"{100 * c.interval[0]:+.2f} to {100 * c.interval[1]:+.2f}"
    assert row["same sign"] == f"{sum(d > 0 for d in c.differences)} of 5"
    arms = dict(zip(arms_table(result).header, arms_table(result).rows[1], strict=True))
    assert arms["train FLOPs, plain = 1"] == "3.10"
    assert arms["time, plain = 1"] == "2.60"
    assert arms["frozen"] == "46,797,824"
    assert arms["peak memory"] == "1.25 GiB"
    rows = terminal_table(result).rows
    assert len(rows) == 8
    assert all(len(r) == len(terminal_table(result).header) for r in rows)
    assert [("exploratory" in r[-1]) for r in rows] == [False] * 3 + [True] * 5
    assert seeds_table(result).rows[0][1] == f"{100 * result.arms[0].values[0]:.2f}"


ODD = ("<script>alert(1)</script>", "a|b_c%d", "100%$#&{}~^\\", "注意_モデル", "[x]*-- 'y' \"z\"", "very_long_" * 12)


@pytest.fixture(scope="module")
def odd():
    """A study whose every text is odd."""
    arms = [make_arm(label, "plain" if i == 0 else f"kind {label}", 0.9 + 0.001 * i) for i, label in enumerate(ODD)]
    planned = compare(arms, [(label, ODD[0]) for label in ODD[1:]])
    return make_study(
        arms,
        planned,
        question=f"{ODD[0]} & more?",
        notes=list(ODD),
        findings=[Finding(kind="stated change", key=text) for text in ODD],
        missing=list(ODD),
        commits=["<b>"],
        config="note: '</pre><script>'\n",
        breakdown=breakdown(planned, "class", ODD),
        data={"name": "<i>", "classes": list(ODD)},
    )


def test_odd_texts_are_escaped_everywhere(odd, tmp_path):
    file = write_report(odd, tmp_path)  # warnings are errors: no missing glyph, no collapsed chart
    html = file.read_text(encoding="utf-8")
    reader = Page(html)
    assert "script" not in reader.tags
    assert "b" not in reader.tags
    assert "i" not in reader.tags
    assert all(text in reader.text for text in ODD)
    for svg in (tmp_path / "figures").glob("*.svg"):
        root = ElementTree.fromstring(svg.read_text(encoding="utf-8"))
        assert not list(root.iter("{http://www.w3.org/2000/svg}script"))
    assert "注意_モデル" in (tmp_path / "figures" / "arms.svg").read_text(encoding="utf-8")
    assert [row["label"] for row in rows_of(arms_sheet(odd).csv())] == list(ODD)
    lines = (tmp_path / "tables" / "arms.md").read_text(encoding="utf-8").splitlines()
    columns = len(arms_table(odd).header)
    assert all(len(re.findall(r"(?<!\\)\|", line)) == columns + 1 for line in lines)
    assert len(lines) == len(ODD) + 2


@pytest.mark.parametrize("table", [arms_table, planned_table])
def test_latex_balances_and_escapes(odd, table):
    text = latex(table(odd))
    lines = text.splitlines()
    assert lines[1].startswith(r"\begin{tabular}{lr")
    assert lines[-1] == r"\end{tabular}"
    assert [line for line in lines if line.endswith("rule")] == [r"\toprule", r"\midrule", r"\bottomrule"]
    bare = re.sub(r"\\(?:[&%$#_{}]|text\w+|\\)", "", "\n".join(lines[3:-1]))
    assert bare.count("{") == bare.count("}")
    assert not re.search(
        r"[%#_^~<>|\\]", bare.replace("\\toprule", "").replace("\\midrule", "").replace("\\bottomrule", "")
    )
    assert bare.count("$") % 2 == 0
    columns = len(table(odd).header)
    rows = [line for line in lines if line.endswith(r" \\")]
    assert len(rows) == len(table(odd).rows) + 1
    assert all(len(re.findall(r"(?<!\\)&", row)) == columns - 1 for row in rows)
    assert not any(row.startswith(("[", "*")) for row in rows)  # the row before would take them as its option


def test_latex_by_hand():
    assert latex_text("a_b 5 %") == r"a\_b 5 \%"
    assert latex_text("-0.19 to +0.54") == "$-$0.19 to +0.54"
    assert latex_text("llm-1 - plain") == "llm-1 - plain"
    assert latex_text("a--b---c") == "a-{}-b-{}-{}-c"
    assert latex_text("x\\y") == r"x\textbackslash{}y"
    assert markdown(Table(("a", "b"), [("x|y", "_1_")])) == "| a | b |\n| --- | ---: |\n| x\\|y | \\_1\\_ |\n"


def test_a_lower_is_better_metric():
    nll = METRICS.find("nll")
    arms = [make_arm("plain", "plain", 0.31), make_arm("llm", "llm", 0.28)]
    planned = compare(arms, [("llm", "plain")], margin=0.01, higher_is_better=False)
    assert planned[0].outcome == "better"
    assert planned[0].mean < 0
    result = make_study(arms, planned, metric=nll, margin=0.01)
    html = page(result, {})
    assert "of which less is better" in html
    assert f"{planned[0].mean:.4f}" in html
    assert "▲ better" in html
    figures = drawn(result)
    assert "left of zero, the first arm is better" in figures["contrasts"].axes[-1].get_xlabel()
    assert "less is better" in figures["cost"].axes[0].get_ylabel()
    # On corrupted images it is the accuracy that is counted, whatever the study compares.
    assert "accuracy, points; right" in figures["breakdown_corruption"].get_supxlabel()
    assert "cross-entropy, nats; left" in figures["breakdown_class"].get_supxlabel()


@pytest.mark.parametrize(
    ("changes", "gone"),
    [
        ({"arms": [], "contrasts": [], "exploratory": [], "curves": {}, "breakdown": []}, set(FIGURES)),
        ({"contrasts": [], "exploratory": [], "findings": []}, {"contrasts", "cost"}),
        ({"curves": {}, "breakdown": []}, {"curves", "breakdown_class", "breakdown_corruption"}),
        ({"curves": {"plain": {"train/loss": [], "val/accuracy": []}}}, {"curves"}),
        ({"notes": [], "missing": [], "commits": [], "environment": {}, "data": {}, "seeds": []}, set()),
    ],
)
def test_nothing_empty_is_drawn(changes, gone):
    result = controls(**changes)
    figures = drawn(result)
    assert not gone & set(figures)
    assert all(axes.has_data() for figure in figures.values() for axes in figure.axes)
    reader = Page(page(result, {}))
    assert "ul" not in reader.tags or "li" in reader.tags
    for text in (
        arms_sheet(result).csv(),
        contrasts_sheet(result, [*result.contrasts, *result.exploratory]).csv(),
        breakdown_csv(result),
        latex(arms_table(result)),
    ):
        assert text.endswith("\n")


def test_an_arm_that_never_ran_and_runs_that_are_missing():
    whole = controls()
    arms = [arm for arm in whole.arms if arm.label != "llm"]
    arms[1] = replace(arms[1], values={0: 0.9, 3: 0.91})
    others = compare(arms, [("mlp", "plain")], correct=False)
    result = make_study(arms, [], others, missing=["llm, seed 0", "llm, seed 1"], seeds=[0, 1, 2, 3, 4])
    reader = Page(page(result, {}))
    assert "Missing runs: 2" in reader.text
    assert "llm, seed 1" in reader.text
    assert "2 runs are missing" in reader.text
    assert seeds_table(result).rows[1][1:] == ("90.00", write.NONE, write.NONE, "91.00", write.NONE)
    assert rows_of(arms_sheet(result).csv())[1]["seed_1"] == ""
    assert {"arms", "contrasts", "cost"} <= set(drawn(result))


def test_without_the_reference_arm_costs_have_no_ratio():
    result = controls()
    others = [replace(arm, cost=replace(arm.cost, time=None)) for arm in result.arms if arm.label != "plain"]
    alone = make_study(others, [result.contrasts[1]], result.exploratory)
    table = arms_table(alone)
    assert table.rows[0][table.header.index("time, plain = 1")] == write.NONE
    assert "cost" not in drawn(alone)


def test_values_that_are_not_finite_are_dashes():
    result = controls()
    c = replace(result.contrasts[0], interval=(-math.inf, math.inf), detectable=math.inf, p=math.nan)
    nothing = replace(result.arms[2], mean=math.nan, interval=(math.nan, math.nan), values={})
    odd = replace(result, contrasts=[c], arms=[*result.arms[:2], nothing])
    row = planned_table(odd).rows[0]
    assert row[2] == row[3] == row[6] == write.NONE
    assert "nan" not in page(odd, {})
    assert "inf " not in page(odd, {})
    assert "nan" not in contrasts_sheet(odd, odd.contrasts).csv()
    assert "nan" not in arms_sheet(odd).csv()
    assert {"arms", "contrasts"} <= set(drawn(odd))


def test_what_a_loop_of_ones_own_did_not_measure_is_left_out():
    """`compare()` knows no memory, learning rate or test items unless the loop says so."""
    result = controls(test_items=0)
    arms = [
        replace(arm, learning_rate=None, val_values={}, cost=replace(arm.cost, peak_memory=None)) for arm in result.arms
    ]
    bare = replace(result, arms=arms)
    text = Page(page(bare, {})).text
    assert "nan" not in text
    assert "0 test items" not in text
    assert arms_table(bare).rows[0][-1] == write.NONE
    assert (
        rows_of(arms_sheet(bare).csv())[0]["peak_memory"] == rows_of(arms_sheet(bare).csv())[0]["learning_rate"] == ""
    )


def test_seconds_stand_in_where_operations_were_not_counted():
    result = controls()
    arms = [replace(arm, cost=replace(arm.cost, train_flops=None)) for arm in result.arms]
    uncounted = replace(result, arms=arms)
    assert not any("FLOPs" in name for name in arms_table(uncounted).header)
    assert "time of training" in drawn(uncounted)["cost"].axes[0].get_xlabel()


def test_layers_of_one_llm_as_the_papers_figure_2():
    result = depth()
    [(name, arms)] = by_layer(result)
    assert name == "qwen2.5-coder-1.5b"
    assert len(arms) == 12
    figures = drawn(result)
    assert "scale" not in figures
    ax = figures["layers"].axes[0]
    assert list(ax.get_xticks()) == [0, 2, 5, 7, 10, 12, 15, 17, 20, 22, 25, 27]
    line = max(ax.lines, key=lambda line: len(line.get_xdata()))
    assert list(line.get_ydata()) == [100 * arm.mean for arm in arms]
    assert len(set(arm_colors(result).values())) == len(result.arms)
    html = page(result, {})
    assert all(arm.label in html for arm in result.arms)
    limits = html.split("Limits, and what would")[1].split("<h3>")[0]
    assert limits.count("<li>") < 6  # what holds for twelve contrasts is said once


def test_several_llms_have_a_line_each_and_a_scale():
    result = depth((0, 9, 18, 27), ("smollm2-135m", "qwen2.5-coder-0.5b", "qwen2.5-coder-1.5b"), seeds=3)
    assert [name for name, _ in by_layer(result)] == ["smollm2-135m", "qwen2.5-coder-0.5b", "qwen2.5-coder-1.5b"]
    figures = drawn(result)
    assert figures["scale"].axes[0].get_xscale() == "log"
    words = [text.get_text() for legend in figures["scale"].legends for text in legend.get_texts()]
    assert words[:3] == ["smollm2-135m", "qwen2.5-coder-0.5b", "qwen2.5-coder-1.5b"]
    assert by_layer(depth((0, 9), seeds=3)) == []  # two layers are no curve


def test_a_grid_of_learning_rates_is_shown_with_its_edge():
    result = controls()
    assert grid_table(result) is None
    assert "Learning rates" not in page(result, {})
    values = {0.0005: {0: 0.88, 1: 0.89}, 0.001: {0: 0.9, 1: 0.91}, 0.002: {0: 0.5}}
    arms = [replace(arm, val_values=values) for arm in result.arms]
    arms[1] = replace(arms[1], learning_rate=0.002)
    grid = replace(result, arms=arms)
    assert grid_table(grid).header == ("arm", "0.0005", "0.001", "0.002")
    assert grid_table(grid).rows[0] == ("plain", "88.50", "90.50 *", "50.00")
    assert at_the_edge(grid) == ["llm"]
    assert "may lie beyond: llm" in page(grid, {})
    assert "learning rate" in questions_table(grid).header


def test_many_classes_are_drawn_at_both_ends_and_written_whole():
    result = controls()
    names = [f"class {i}" for i in range(200)]
    many = replace(result, breakdown=breakdown(result.contrasts, "class", names))
    shown = shown_names(many, "class")
    first = {part.name: part.mean for part in many.breakdown if part.reference == "plain"}
    ordered = sorted(first, key=lambda name: -first[name])
    assert shown == ordered[: MOST_ROWS // 2] + ordered[-(MOST_ROWS // 2) :]
    reader = Page(page(many, {}))
    assert all(name in reader.texts for name in names)
    assert len(rows_of(breakdown_csv(many))) == 600


def test_figures_of_an_earlier_result_go_when_there_is_nothing_for_them(tmp_path):
    for name in ("layers.svg", "layers.png", "own.svg"):
        (tmp_path / name).write_text("of an earlier result")
    figure = Figure(figsize=(1, 1))
    assert list(write_figures(dict.fromkeys(FIGURES) | {"arms": figure}, tmp_path)) == ["arms"]
    assert {path.name for path in tmp_path.iterdir()} == {"arms.svg", "arms.png", "own.svg"}


def test_inline_figures_scale(written):
    svg = (written[1].parent / "figures" / "arms.svg").read_text(encoding="utf-8")
    inside = inline(svg)
    assert inside.startswith("<svg")
    assert "<?xml" not in inside
    assert not re.search(r'<svg[^>]* width="', inside)
    ElementTree.fromstring(inside)


def test_shortened_labels_keep_both_ends():
    assert short("plain") == "plain"
    assert short("a\x00b\nc") == "a b c"
    long = short("qwen2.5-coder-1.5b_layer_27", 20)
    assert len(long) == 20
    assert long.startswith("qwen")
    assert long.endswith("27")


def test_a_result_survives_json():
    """What the page shows is plain data: nothing in it needs more than results.json."""
    result = controls()
    assert json.loads(json.dumps(asdict(result)))["arms"][1]["label"] == "llm"


METRES = Metric(
    name="ade",
    title="test displacement error",
    higher_is_better=False,
    scale=1.0,
    unit="m",
    difference_unit="m",
    margin=0.02,
    digits=3,
)


@pytest.fixture
def scenes():
    """A study in metres, less being better, of scenes on roads, in few groups; values without bounds."""
    arms = [make_arm("plain", "plain", 1.31, spread=0.01), make_arm("llm", "llm", 1.22, spread=0.01)]
    arms = [replace(arm, val_values={0.001: {0: arm.mean, 1: arm.mean}, 0.002: {0: 12.5, 1: 13.5}}) for arm in arms]
    planned = [
        replace(c, groups=12, bootstrap=(-0.2, 0.01))
        for c in compare(arms, [("llm", "plain")], margin=0.02, higher_is_better=False)
    ]
    ends = ((-0.12, -0.04), None)
    made = make_study(arms, planned)
    return replace(
        made,
        metric=METRES,
        monitor=METRES,
        margin=0.02,
        things="scenes",
        name="road/controls",
        recipe="road/polylines",
        question="Does it see the road?",
        breakdown=[
            Breakdown(kind="road", name=name, arm="llm", reference="plain", mean=-0.08, interval=interval)
            for name, interval in zip(("left_turn", "straight"), ends, strict=True)
        ],
        curves={
            arm.label: {"val/ade": [Band(step=s, mean=2.0 - s / 100, low=1.8, high=2.1) for s in (10, 20, 30)]}
            for arm in arms
        },
        findings=[Finding(kind="helps", contrast=c) for c in planned]
        + [Finding(kind=kind, contrast=planned[0]) for kind in ("other items", "few groups")],
        notes=[],
    )


def test_the_page_says_which_items_were_tested(scenes):
    assert "chose the epoch" not in page(controls(), {})
    text = Page(page(replace(scenes, splits={"test": "2019"}, selection="last"), {})).text
    assert "Tested on the scenes of 2019; nothing chose the epoch: the last one counts." in text


def test_a_study_in_metres_has_its_signs_and_units_everywhere(scenes, tmp_path):
    result = worded(scenes)
    c = result.contrasts[0]
    assert c.outcome == "better"
    assert c.mean < 0
    write_report(result, tmp_path)
    above, _ = page(result, {}).split("<h2>To repeat it")
    text = Page(above + "</main></body></html>").text
    assert not re.search(r"image|accuracy|\bclass|corruption|\bpoints\b", text)
    assert "10,000 test scenes" in text
    assert "of which less is better" in text
    assert "▲ better" in text
    assert "By road" in text
    assert f"{c.mean:.3f} m" in result.verdict[0]
    assert "0.020 m" in text
    assert "12 groups" in text
    arms, contrasts = arms_table(result), planned_table(result)
    assert arms.header[1] == "test displacement error, m"
    assert arms.rows[1][1] == f"{result.arms[1].mean:.3f}"
    row = dict(zip(contrasts.header, contrasts.rows[0], strict=True))
    assert row["difference, m"] == f"{c.mean:+.3f}"
    assert row["groups"] == "12"
    assert grid_table(result).rows[0][-1] == "13.000"
    assert breakdown_table(result, "road").header == ("road", "llm - plain")
    assert [row[1] for row in breakdown_table(result, "road").rows] == [
        "-0.080 (-0.120 to -0.040)",
        f"-0.080 ({write.NONE})",
    ]
    files = {path.name: path.read_text() for path in write_tables(result, tmp_path / "tables")}
    assert f"| {c.mean:+.3f} |" in files["contrasts.md"]
    assert f"$-${-c.mean:.3f}" in files["contrasts.tex"]
    assert float(rows_of(files["contrasts.csv"])[0]["mean"]) == c.mean
    assert rows_of(files["breakdown.csv"])[1]["low"] == ""
    figures = drawn(result)
    assert figures["arms"].axes[0].get_xlabel() == "test displacement error, m; less is better"
    assert "left of zero" in figures["contrasts"].axes[-1].get_xlabel()
    assert figures["curves"].axes[0].get_ylabel() == "validation displacement error, m"
    assert "m; left of zero" in figures["breakdown_road"].get_supxlabel()
    assert figures["cost"].axes[0].lines[1].get_ydata()[0] == pytest.approx(c.interval[0])


@pytest.mark.parametrize("reason", write.MISSING)
def test_an_interval_that_is_not_there_is_a_dash_with_its_reason(scenes, reason):
    contrasts = [replace(c, interval=None, no_interval=reason, bootstrap=None) for c in scenes.contrasts]
    arms = [replace(arm, interval=None) for arm in scenes.arms]
    findings = [Finding(kind=kind, contrast=contrasts[0]) for kind in ("helps", "no interval")]
    result = worded(replace(scenes, contrasts=contrasts, arms=arms, findings=findings))
    assert planned_table(result).rows[0][2] == write.NONE
    assert arms_table(result).rows[0][2] == write.NONE
    assert write.MISSING[reason] in result.verdict[-1]
    text = Page(page(result, {})).text
    assert f"{write.NONE}: {write.MISSING[reason]}" in text
    assert {"arms", "contrasts", "cost"} <= set(drawn(result))
    assert rows_of(contrasts_sheet(result, contrasts).csv())[0]["low"] == ""


EVIDENCE = {
    "fashion_controls": ["helps", "worse", "better", "no own contrast"],
    "fashion_depth": ["not shown", "few seeds"],
    "fashion_rates": ["not shown", "worse", "helps"],
    "fashion_scale": [*["not shown"] * 3, "tally", "not shown", "worse"],
}


@pytest.mark.parametrize("name", EVIDENCE)
def test_evidence_of_an_older_version_is_found_and_shown_as_before(name, tmp_path):
    """These files hold sentences and no findings, and metrics without bounds."""
    result = read_study(Path(__file__).parents[2] / "evidence" / name)
    assert [f.kind for f in result.findings] == EVIDENCE[name]
    reader = Page(page(result, {}))
    assert len([style for style in reader.styles() if style not in ("continued", "files", "missing")]) == len(
        result.findings
    )
    assert all(note in reader.text for note in result.notes)
    write_tables(result, tmp_path)
    held = rows_of((tmp_path / "contrasts.csv").read_text())
    assert [float(row["mean"]) for row in held] == [c.mean for c in (*result.contrasts, *result.exploratory)]
    assert {"arms", "contrasts", "curves", "cost", "breakdown_class"} <= set(drawn(result))
