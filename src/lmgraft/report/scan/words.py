"""What a scan's numbers say, and what they do not, in sentences."""

from __future__ import annotations

import yaml

from lmgraft.analysis.agreement import Agreement
from lmgraft.analysis.numbers import in_unit
from lmgraft.contracts import Metric
from lmgraft.report.scan.tables import title_of, written
from lmgraft.studies.scan.candidates import Candidate
from lmgraft.studies.scan.config import parse_position
from lmgraft.studies.scan.known import Known
from lmgraft.studies.scan.ranking import agreements, columns, rank, values_of
from lmgraft.studies.scan.results import GAIN, Scan, unit_of
from lmgraft.studies.scan.scores import SCORES

PAPER = (
    "The paper, which this tool follows, reports for LLaMA-7B and OPT on ImageNet that the layer matters (its Fig. 2), "
    "and that last layers help consistently without always being the best. It tested none of these scores, and small "
    "LLMs (125M, 350M) hurt there whatever a score may say, but at a fifth of the learning rate; nothing between 350M "
    "and 1.3B was tried."
)


def statements(scan: Scan, known: Known | None = None) -> list[str]:
    """Sentences for the page and the terminal."""
    said = [_favourite(scan, name) for name in columns(scan)]
    found = {name: agreements(scan, truth) for name, truth in truths(scan, known).items()}
    said += [_one(*of, source, unit_for(scan, source, known)) for source, own in found.items() for of in own.items()]
    tested = sum(a.kendall is not None for own in found.values() for a in own.values())
    if tested > 1:
        said.append(f"The p values of these {tested} agreements are not corrected: of several, one is small by luck.")
    said.append(_advice(scan, known))
    said.append(PAPER)
    return said


def truths(scan: Scan, known: Known | None) -> dict[str, dict[str, float]]:
    """Where trainings are known from -> candidate's label -> gain."""
    own = values_of(scan, GAIN)
    return ({"short training": own} if own else {}) | ({known.source: known.gains} if known is not None else {})


def unit_for(scan: Scan, source: str, known: Known | None) -> Metric:
    """The metric of the gains that come from there."""
    return known.metric if known is not None and source == known.source else scan.metric


def _favourite(scan: Scan, name: str) -> str:
    order = rank(scan, name)
    if not order:
        applies = all(m.applies for s in scan.chosen() if (m := s.scores.get(name)) is not None)
        why = "could not be had for any candidate" if applies else "is not for this task"
        return f"By {title_of(name)} there is no ranking: it {why}."
    best, tied = order[0], [r for r in order if r.tied]
    assert best.measured.value is not None
    value = f"{written(scan, best.measured.value, name)} {unit_of(scan, name).difference_unit}".strip()
    text = f"By {title_of(name)}, {_title(scan, best.label)} comes first ({value})"
    if not order[1:]:
        return f"{text}; it is the only candidate."
    if len(tied) == len(order) - 1:
        return f"{text}; no candidate is told apart from it."
    if not tied:
        return f"{text}, apart from all others."
    others = "1 other is" if len(tied) == 1 else f"{len(tied)} others are"
    return f"{text}; {others} not told apart from it ({_listed([_title(scan, r.label) for r in tied])})."


def _one(name: str, found: Agreement, source: str, metric: Metric) -> str:
    start = f"{title_of(name)[:1].upper()}{title_of(name)[1:]} against {source}: "
    if found.kendall is None:
        return f"{start}{found.note}."
    tau = found.kendall
    if tau.p >= 0.05:
        said = "no agreement is shown, which does not mean that there is none"
    else:
        said = "it ranked alike more than chance would" if tau.value > 0 else "it ranked the other way round"
    lost = ""
    if found.regret is not None and found.regret_of_chance is not None:
        lost = (
            f" Training its favourite only would have lost {in_unit(found.regret, metric)} {metric.difference_unit} "
            f"to the best of these; a candidate drawn at random {in_unit(found.regret_of_chance, metric)}."
        )
    return f"{start}{said} (Kendall's tau {tau.value:+.2f}, p {tau.p:.2f}, {len(found.candidates)} candidates).{lost}"


def _advice(scan: Scan, known: Known | None) -> str:
    picked = candidates_to_train(scan)
    if not picked:
        return "There is nothing to recommend: no candidate has a score."
    listed = _listed([candidate.title for candidate in picked])
    gained = rank(scan, GAIN)
    if gained and not any(_above_zero(r.measured.interval) for r in gained):
        how = (
            "In the short training no candidate's gain over the plain encoder is told apart from zero, so the scan "
            f"does not say that a block helps here. Worth a study with plain beside them, if anything: {listed}."
        )
    elif gained:
        how = f"Worth a real study with enough seeds, before anything is claimed: {listed}."
    else:
        how = (
            f"Nothing was trained, so these scores are guesses. Worth a short training first: {listed}."
            if known is None
            else f"Worth a real study with enough seeds: {listed}."
        )
    return (
        f"{how} The best of many candidates looks better than it is, by chance alone; a study with new seeds does not "
        "have that fault."
    )


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
    for candidate in candidates_to_train(scan):
        what = {
            "graft.llm": candidate.llm,
            "graft.layer": candidate.layer,
            "graft.at": parse_position(candidate.position),
        }
        arms[candidate.label] = {"arm": "llm", **what}
        arms[f"{candidate.label}_random"] = {"arm": "random_frozen", **what}
    own = [candidate.label for candidate in candidates_to_train(scan)]
    first = int(scan.settings["recipe"]["seed"]) + int(scan.settings["effort"]["train_seeds"])
    content = {
        "recipe": scan.recipe,
        "question": "Does a block that the scan found help?",
        "seeds": list(range(first, first + 5)),
        "arms": arms,
        "contrasts": [pair for label in own for pair in ([label, "plain"], [label, f"{label}_random"])],
        "arguments": scan.settings["overrides"],
    }
    return str(yaml.safe_dump(content, sort_keys=False, allow_unicode=True))


def _above_zero(interval: tuple[float, float] | None) -> bool:
    return interval is not None and interval[0] > 0


def _title(scan: Scan, label: str) -> str:
    return scan.candidates[label].candidate.title


def _listed(titles: list[str], most: int = 4) -> str:
    shown = titles[:most]
    return "; ".join(shown) + (f"; and {len(titles) - most} more" if len(titles) > most else "")


def score_facts() -> list[tuple[str, ...]]:
    """Name, what it measures, why it might predict, where its interval comes from; of each score."""
    return [(s.title, s.measures, s.why, s.interval) for s in SCORES.values()]
