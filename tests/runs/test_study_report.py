"""A study's page, tables and figures, from made-up results: every arm everywhere, numbers as the data has them."""

import csv
import io
import json
import math
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import asdict, replace
from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from study_results import CLASSES, CORRUPTIONS, breakdown, compare, controls, depth, make_arm, make_study

from lmgraft.analysis.bootstrap_coverage import COVERED_BY_GROUPS
from lmgraft.analysis.metrics import METRICS
from lmgraft.report.drawing import colors, in_the_dark, inline, short, theme, write_figures
from lmgraft.report.study import format as write
from lmgraft.report.study import write_report
from lmgraft.report.study.breakdown import MOST_ROWS, shown_names
from lmgraft.report.study.depth import by_layer
from lmgraft.report.study.figures import FIGURES, draw_all
from lmgraft.report.study.files import arms_csv, breakdown_csv, contrasts_csv
from lmgraft.report.study.limits import limits
from lmgraft.report.study.page import page
from lmgraft.report.study.tables import (
    arms_header,
    arms_rows,
    arms_table,
    at_the_edge,
    contrast_header,
    contrast_rows,
    contrasts_table,
    grid_table,
    questions_table,
    seeds_table,
)
from lmgraft.report.table import Table, latex, latex_text, markdown

VOID = {"meta", "br", "path", "use", "rect", "img"}


class Reader(HTMLParser):
    """What a browser would make of the page: tags in balance, text, addresses."""

    def __init__(self, html):
        super().__init__()
        self.open, self.tags, self.addresses, self.texts, self.items = [], [], [], [], []
        self.feed(html)
        assert self.open == []
        self.text = " ".join(self.texts)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "xlink:href")]
        if tag == "li":
            self.items.append(dict(attrs).get("class"))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.texts.append(data)


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
    reader = Reader(html)
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


def test_page_needs_every_color_defined_in_light_and_in_dark(written):
    html = written[1].read_text(encoding="utf-8")
    light, dark = html.split("@media (prefers-color-scheme: dark){:root{")
    used = set(re.findall(r"var\((--c[0-9a-f]{6})\)", html))
    assert used
    for name in used:
        assert f"{name}:#" in light
        assert f"{name}:#" in dark
    assert in_the_dark("#3a3f47") > "#808080"
    assert in_the_dark("#111111")[1:3] > "a0"


def test_verdicts_are_marked_by_what_they_say():
    sentences = {
        "Helps: with the block it is better than without.": "helps",
        "Hurts: with the block it is 1 point lower.": "hurts",
        "Not shown: that the block (llm) helps or hurts against the encoder.": "unclear",
        "Neither shown: whether the language matters, and that it is better than a random one.": "unclear",
        "The language matters: the block (llm) is better than a random one.": "helps",
        "Worse than its control: the block is worse than a random one.": "hurts",
        "The block and the control are equivalent within the margin of 0.50 points: explained by it.": "equal",
        "A difference was shown, and it is within the margin, so it counts as equal here: a is better than b.": "equal",
        "The difference is shown, and within the margin of 0.50 points, so it counts as equal here.": "equal",
        "The differences a - b are the same for every seed: the spread cannot be judged.": "caution",
        "For a - b the secondary interval, over other seeds, holds zero (-1 to 2): it may not.": "caution",
        "No planned contrast holds b against a frozen LLM block: no evidence of a difference.": "caution",
        "1 run failed (llm, seed 1): survivors may be a favourable selection.": "caution",
        "A true difference of 1 point would have been shown.": "said",
    }
    for half in (list(sentences)[:7], list(sentences)[7:]):  # more would be folded
        reader = Reader(page(controls(verdict=half), {}))
        assert reader.items[: len(half)] == [sentences[sentence] for sentence in half]
        assert all(sign in reader.texts for sign in ("▲▼○=" if half[0].startswith("Helps") else "=!"))


def test_a_long_verdict_shows_first_what_was_shown_and_hides_nothing():
    many = [f"Not shown: that arm_{i} helps or hurts." for i in range(12)]
    look = "2 paired seeds (a - b) are fewer than 5: this is a first look, not a verdict."
    said = ["Helps: arm_12.", *many, "Of 13 frozen LLM blocks: help: 1, hurt: 0, not shown: 12.", look]
    html = page(controls(verdict=said), {})
    first, rest = html[: html.index("<details")], html[html.index("<details") :]
    assert said[0] in first
    assert said[-2] in first
    assert look in first
    assert many[0] not in first
    assert all(sentence in rest for sentence in said)


def test_cautions_never_fold_away():
    cautions = [
        *("The differences a - b are the same for every seed: x.", "For a - b the secondary interval holds zero."),
        *("No planned contrast holds b against a frozen LLM block: y.", "2 paired seeds: a first look, not a verdict."),
    ]
    notes = ["A note.", "After results had been read, margin: 0.01 (was 0.005).", "After results with 2 seeds, 3."]
    many = [f"Helps: arm_{i}." for i in range(12)]
    for verdict in ([*many, *cautions], [*many[:2], *cautions], [f"Not shown: arm_{i}." for i in range(12)] + cautions):
        html = page(controls(verdict=verdict, notes=notes), {})
        card = html[html.index('class="card verdict"') : html.index("Limits, and what would")].split("<details")[0]
        assert all(f'<li class="caution"><span class="sign" aria-hidden="true">!</span>{c}' in card for c in cautions)
        assert all(f"</span>{note}</li>" in card for note in notes[1:])
        assert notes[0] not in card
        assert all(f"<li>{note}</li>" in html.split("Limits, and what would")[1] for note in notes)
    html = page(controls(verdict=[], notes=notes), {})
    assert "There is no verdict" in html
    assert f"</span>{notes[1]}</li>" in html


def test_page_says_what_intervals_and_small_llms_do_not():
    html = page(controls(), {})
    assert "Intervals are not corrected for the number of contrasts" in html
    assert "seeds do not spread" not in html
    html = page(depth(), {"layers": "<svg></svg>"})
    assert "at a fifth of its learning rate" in html
    assert "nothing between 350M and 1.3B was tried" in html


def test_without_spread_there_are_dashes_and_no_certainty():
    arms = [make_arm("plain", "plain", 0.9, spread=0), make_arm("llm", "llm", 0.95, spread=0)]
    planned = [replace(c, bootstrap=None) for c in compare(arms, [("llm", "plain")])]
    result = make_study(arms, planned)
    row = contrasts_table(result, planned).rows[0]
    assert row[1] == "+5.00"
    assert row[2:8] == (write.NONE,) * 6
    assert row[-1] == "not shown"
    held = rows_of(contrasts_csv(result))[0]
    assert float(held["mean"]) == pytest.approx(0.05)
    assert {held[name] for name in ("low", "high", "p", "p_holm", "p_equivalence", "detectable")} == {""}
    text = Reader(page(result, {})).text
    assert "seeds do not spread" in text
    assert not re.search(r"\+5\.00 to|0\.00 points would|under 0\.00", text)
    assert "contrasts" in draw_all(result)


def test_few_groups_are_said_with_what_their_interval_covered():
    arms = [make_arm("plain", "plain", 0.9), make_arm("llm", "llm", 0.95), make_arm("mlp", "mlp", 0.94)]
    many, few = compare(arms, [("llm", "plain"), ("llm", "mlp")])
    text = Reader(page(make_study(arms, [replace(many, groups=400), replace(few, groups=12)]), {})).text
    assert "these in 400 groups" in text
    assert f"covered {100 * COVERED_BY_GROUPS[300][5]:.1f} % at worst in simulation with 5 seeds and 300 groups" in text
    alone = Reader(page(make_study(arms, [replace(few, groups=9)]), {})).text
    assert "these in 9 groups" in alone
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
    table = contrasts_table(result, result.contrasts)
    row, c = dict(zip(table.header, table.rows[0], strict=True)), result.contrasts[0]
    assert row["contrast"] == "llm - plain"
    assert row["difference, points"] == f"{100 * c.mean:+.2f}"
    assert row["95 % interval"] == f"{100 * c.interval[0]:+.2f} to {100 * c.interval[1]:+.2f}"
    assert row["same sign"] == f"{sum(d > 0 for d in c.differences)} of 5"
    arms = dict(zip(arms_header(result), arms_rows(result)[1], strict=True))
    assert arms["train FLOPs, plain = 1"] == "3.10"
    assert arms["time, plain = 1"] == "2.60"
    assert arms["frozen"] == "46,797,824"
    assert arms["peak memory"] == "1.25 GiB"
    assert len(contrast_rows(result)) == 8
    assert all(len(r) == len(contrast_header(result)) for r in contrast_rows(result))
    assert [("exploratory" in r[-1]) for r in contrast_rows(result)] == [False] * 3 + [True] * 5
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
        verdict=[*ODD],
        missing=list(ODD),
        commits=["<b>"],
        config="note: '</pre><script>'\n",
        breakdown=breakdown(planned, "class", ODD),
        data={"name": "<i>", "classes": list(ODD)},
    )


def test_odd_texts_are_escaped_everywhere(odd, tmp_path):
    file = write_report(odd, tmp_path)  # warnings are errors: no missing glyph, no collapsed chart
    html = file.read_text(encoding="utf-8")
    reader = Reader(html)
    assert "script" not in reader.tags
    assert "b" not in reader.tags
    assert "i" not in reader.tags
    assert all(text in reader.text for text in ODD)
    for svg in (tmp_path / "figures").glob("*.svg"):
        root = ElementTree.fromstring(svg.read_text(encoding="utf-8"))
        assert not list(root.iter("{http://www.w3.org/2000/svg}script"))
    assert "注意_モデル" in (tmp_path / "figures" / "arms.svg").read_text(encoding="utf-8")
    assert [row["label"] for row in rows_of(arms_csv(odd))] == list(ODD)
    lines = (tmp_path / "tables" / "arms.md").read_text(encoding="utf-8").splitlines()
    columns = len(arms_table(odd).header)
    assert all(len(re.findall(r"(?<!\\)\|", line)) == columns + 1 for line in lines)
    assert len(lines) == len(ODD) + 2


@pytest.mark.parametrize("table", [arms_table, lambda r: contrasts_table(r, r.contrasts)])
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
    nll = METRICS["nll"]
    arms = [make_arm("plain", "plain", 0.31), make_arm("llm", "llm", 0.28)]
    planned = compare(arms, [("llm", "plain")], margin=0.01, higher_is_better=False)
    assert planned[0].outcome == "better"
    assert planned[0].mean < 0
    result = make_study(arms, planned, metric=nll, margin=0.01)
    html = page(result, {})
    assert "of which less is better" in html
    assert f"{planned[0].mean:.4f}" in html
    assert "▲ better" in html
    figures = draw_all(result)
    assert "left of zero, the first arm is better" in figures["contrasts"].axes[-1].get_xlabel()
    assert "less is better" in figures["cost"].axes[0].get_ylabel()
    # On corrupted images it is the accuracy that is counted, whatever the study compares.
    assert "accuracy, points; right" in figures["breakdown_corruption"].get_supxlabel()
    assert "cross-entropy, nats; left" in figures["breakdown_class"].get_supxlabel()


@pytest.mark.parametrize(
    ("changes", "gone"),
    [
        ({"arms": [], "contrasts": [], "exploratory": [], "curves": {}, "breakdown": []}, set(FIGURES)),
        ({"contrasts": [], "exploratory": [], "verdict": []}, {"contrasts", "cost"}),
        ({"curves": {}, "breakdown": []}, {"curves", "breakdown_class", "breakdown_corruption"}),
        ({"curves": {"plain": {"train/loss": [], "val/accuracy": []}}}, {"curves"}),
        ({"notes": [], "missing": [], "commits": [], "environment": {}, "data": {}, "seeds": []}, set()),
    ],
)
def test_nothing_empty_is_drawn(changes, gone):
    result = controls(**changes)
    figures = draw_all(result)
    assert not gone & set(figures)
    assert all(axes.has_data() for figure in figures.values() for axes in figure.axes)
    reader = Reader(page(result, {}))
    assert "ul" not in reader.tags or "li" in reader.tags
    for text in (arms_csv(result), contrasts_csv(result), breakdown_csv(result), latex(arms_table(result))):
        assert text.endswith("\n")


def test_an_arm_that_never_ran_and_runs_that_are_missing():
    whole = controls()
    arms = [arm for arm in whole.arms if arm.label != "llm"]
    arms[1] = replace(arms[1], values={0: 0.9, 3: 0.91})
    others = compare(arms, [("mlp", "plain")], correct=False)
    result = make_study(arms, [], others, missing=["llm, seed 0", "llm, seed 1"], seeds=[0, 1, 2, 3, 4])
    reader = Reader(page(result, {}))
    assert "Missing runs: 2" in reader.text
    assert "llm, seed 1" in reader.text
    assert any("2 runs are missing" in sentence for sentence in limits(result))
    assert seeds_table(result).rows[1][1:] == ("90.00", write.NONE, write.NONE, "91.00", write.NONE)
    assert rows_of(arms_csv(result))[1]["seed_1"] == ""
    assert {"arms", "contrasts", "cost"} <= set(draw_all(result))


def test_without_the_reference_arm_costs_have_no_ratio():
    result = controls()
    alone = make_study([arm for arm in result.arms if arm.label != "plain"], [result.contrasts[1]], result.exploratory)
    table = arms_table(alone)
    assert table.rows[0][table.header.index("time, plain = 1")] == write.NONE
    assert "cost" not in draw_all(alone)


def test_values_that_are_not_finite_are_dashes():
    result = controls()
    c = replace(result.contrasts[0], interval=(-math.inf, math.inf), detectable=math.inf, p=math.nan)
    nothing = replace(result.arms[2], mean=math.nan, interval=(math.nan, math.nan), values={})
    odd = replace(result, contrasts=[c], arms=[*result.arms[:2], nothing])
    row = contrasts_table(odd, [c]).rows[0]
    assert row[2] == row[3] == row[6] == write.NONE
    assert "nan" not in page(odd, {})
    assert "inf " not in page(odd, {})
    assert "nan" not in contrasts_csv(odd)
    assert "nan" not in arms_csv(odd)
    assert {"arms", "contrasts"} <= set(draw_all(odd))


def test_what_a_loop_of_ones_own_did_not_measure_is_left_out():
    """`compare()` knows no memory, learning rate or test items unless the loop says so."""
    result = controls(test_items=0)
    arms = [
        replace(arm, learning_rate=None, val_values={}, cost=replace(arm.cost, peak_memory=None)) for arm in result.arms
    ]
    bare = replace(result, arms=arms)
    text = Reader(page(bare, {})).text
    assert "nan" not in text
    assert "0 test items" not in text
    assert arms_rows(bare)[0][-1] == write.NONE
    assert rows_of(arms_csv(bare))[0]["peak_memory"] == rows_of(arms_csv(bare))[0]["learning_rate"] == ""


def test_seconds_stand_in_where_operations_were_not_counted():
    result = controls()
    arms = [replace(arm, cost=replace(arm.cost, train_flops=None)) for arm in result.arms]
    uncounted = replace(result, arms=arms)
    assert not any("FLOPs" in name for name in arms_header(uncounted))
    assert "seconds of training" in draw_all(uncounted)["cost"].axes[0].get_xlabel()


def test_layers_of_one_llm_as_the_papers_figure_2():
    result = depth()
    [(name, arms)] = by_layer(result)
    assert name == "qwen2.5-coder-1.5b"
    assert len(arms) == 12
    figures = draw_all(result)
    assert "scale" not in figures
    ax = figures["layers"].axes[0]
    assert list(ax.get_xticks()) == [0, 2, 5, 7, 10, 12, 15, 17, 20, 22, 25, 27]
    line = max(ax.lines, key=lambda line: len(line.get_xdata()))
    assert list(line.get_ydata()) == [100 * arm.mean for arm in arms]
    assert len(set(colors(result).values())) == len(result.arms)
    html = page(result, {})
    assert all(arm.label in html for arm in result.arms)
    assert len(limits(result)) < 6  # what holds for twelve contrasts is said once


def test_several_llms_have_a_line_each_and_a_scale():
    result = depth((0, 9, 18, 27), ("smollm2-135m", "qwen2.5-coder-0.5b", "qwen2.5-coder-1.5b"), seeds=3)
    assert [name for name, _ in by_layer(result)] == ["smollm2-135m", "qwen2.5-coder-0.5b", "qwen2.5-coder-1.5b"]
    figures = draw_all(result)
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
    reader = Reader(page(many, {}))
    assert all(name in reader.texts for name in names)
    assert len(rows_of(breakdown_csv(many))) == 600


def test_figures_of_an_earlier_result_go_when_there_is_nothing_for_them(tmp_path):
    for name in ("layers.svg", "layers.png", "own.svg"):
        (tmp_path / name).write_text("of an earlier result")
    figure = Figure(figsize=(1, 1))
    assert list(write_figures({"arms": figure}, tmp_path, tuple(FIGURES))) == ["arms"]
    assert {path.name for path in tmp_path.iterdir()} == {"arms.svg", "arms.png", "own.svg"}


def test_inline_figures_scale_and_take_the_pages_colors(written):
    svg = (written[1].parent / "figures" / "arms.svg").read_text(encoding="utf-8")
    inside = inline(svg)
    assert inside.startswith("<svg")
    assert "<?xml" not in inside
    assert not re.search(r'<svg[^>]* width="', inside)
    ElementTree.fromstring(inside)
    assert not re.search(r"[ :]#[0-9a-f]{6}[;\"]", inside)
    assert theme([inside]).count("{") == theme([inside]).count("}")


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
