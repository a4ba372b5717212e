"""What a scan's numbers say, as records, and the study that follows from them."""

from __future__ import annotations

import yaml

from lmgraft.analysis.agreement import Agreement
from lmgraft.contracts import Metric
from lmgraft.report.scan.tables import written_as
from lmgraft.studies.scan.candidates import Candidate
from lmgraft.studies.scan.config import parse_position
from lmgraft.studies.scan.known import Known
from lmgraft.studies.scan.ranking import agreements, columns, rank, values_of
from lmgraft.studies.scan.results import GAIN, Scan, is_difference
from lmgraft.studies.scan.scores import SCORES
from lmgraft.words.scan import SHOWN_AT, Kind, ScanFinding


def findings(scan: Scan, known: Known | None = None) -> list[ScanFinding]:
    """What the page and the terminal say."""
    made = [_favourite(scan, name) for name in columns(scan)]
    by_source = {source: agreements(scan, truth) for source, truth in truths(scan, known).items()}
    made += [
        _agreement(scan, name, found, source, metric_of(scan, source, known))
        for source, by_score in by_source.items()
        for name, found in by_score.items()
    ]
    tested = sum(a.kendall is not None for by_score in by_source.values() for a in by_score.values())
    if tested > 1:
        made.append(ScanFinding(kind="uncorrected", count=tested))
    return [*made, _advice(scan, known), ScanFinding(kind="paper")]


def truths(scan: Scan, known: Known | None) -> dict[str, dict[str, float]]:
    """Where trainings are known from -> candidate's label -> gain."""
    short = values_of(scan, GAIN)
    return ({"short training": short} if short else {}) | ({known.source: known.gains} if known is not None else {})


def metric_of(scan: Scan, source: str, known: Known | None) -> Metric:
    """The metric of the gains that come from there."""
    return known.metric if known is not None and source == known.source else scan.metric


def _favourite(scan: Scan, name: str) -> ScanFinding:
    order, score = rank(scan, name), written_as(scan, name)
    if not order:
        return ScanFinding(kind="no ranking", score=score)
    tied = [r for r in order if r.tied]
    kind: Kind = "some tied"
    if len(order) == 1:
        kind = "only one"
    elif len(tied) in (0, len(order) - 1):
        kind = "none apart" if tied else "apart from all"
    titles = tuple(scan.candidates[r.label].candidate.title for r in (order[0], *tied))
    return ScanFinding(kind=kind, score=score, value=order[0].measured.value, signed=is_difference(name), names=titles)


def _agreement(scan: Scan, name: str, found: Agreement, source: str, metric: Metric) -> ScanFinding:
    kind: Kind = "too few"
    if found.kendall is not None and found.kendall.p >= SHOWN_AT:
        kind = "no agreement"
    elif found.kendall is not None:
        kind = "ranked alike" if found.kendall.value > 0 else "ranked otherwise"
    return ScanFinding(kind=kind, score=written_as(scan, name), source=source, agreement=found, metric=metric)


def _advice(scan: Scan, known: Known | None) -> ScanFinding:
    picked = tuple(candidate.title for candidate in candidates_to_train(scan))
    if not picked:
        return ScanFinding(kind="nothing to train")
    gained = [r.measured.interval for r in rank(scan, GAIN)]
    kind: Kind = "train: untrained" if known is None else "train: known"
    if gained:
        above = any(interval is not None and interval[0] > 0 for interval in gained)
        kind = "train: gain" if above else "train: no gain"
    return ScanFinding(kind=kind, names=picked)


def candidates_to_train(scan: Scan, most: int = 4) -> list[Candidate]:
    """What to look at next: the best by the short training, else the favourites of the scores; without repetition."""
    names = columns(scan)
    if GAIN in names:
        order = rank(scan, GAIN)
        labels = [r.label for r in order[:1]] + [r.label for r in order[1:] if r.tied]
    else:
        labels = [r.label for name in names for r in rank(scan, name)[:1]]
    return [scan.candidates[label].candidate for label in list(dict.fromkeys(labels))[:most]]


def next_study(scan: Scan) -> str:
    """A study's file that compares those with the plain encoder and with random blocks, as YAML text."""
    arms: dict[str, dict[str, object]] = {"plain": {}}
    candidates = candidates_to_train(scan)
    for candidate in candidates:
        what = {
            "graft.llm": candidate.llm,
            "graft.layer": candidate.layer,
            "graft.at": parse_position(candidate.position),
        }
        arms[candidate.label] = {"arm": "llm", **what}
        arms[f"{candidate.label}_random"] = {"arm": "random_frozen", **what}
    first = int(scan.settings["recipe"]["seed"]) + int(scan.settings["effort"]["train_seeds"])
    content = {
        "recipe": scan.recipe,
        "question": "Does a block that the scan found help?",
        "seeds": list(range(first, first + 5)),
        "arms": arms,
        "contrasts": [[c.label, other] for c in candidates for other in ("plain", f"{c.label}_random")],
        "arguments": scan.settings["overrides"],
    }
    return str(yaml.safe_dump(content, sort_keys=False, allow_unicode=True))


def score_facts() -> list[tuple[str, ...]]:
    """Name, what it measures, why it might predict, where its interval comes from; of each score."""
    return [(s.title, s.measures, s.why, s.interval) for s in SCORES.values()]
