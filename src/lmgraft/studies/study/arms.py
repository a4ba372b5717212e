"""The arms of a study as its file gives them: by name, with what they change, several at once by {each: [...]}."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lmgraft.errors import RecipeError
from lmgraft.recipes import ARMS
from lmgraft.registry import suggest

Pair = tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class ArmSpec:
    """One arm of a study: a kind, and what it changes in the recipe."""

    arm: str
    question: str
    overrides: dict[str, Any] = field(default_factory=dict)
    """Dotted recipe keys -> values."""


LABEL = re.compile(r"[A-Za-z0-9_+-][\w.+-]{0,79}")
"""It names a folder: no separators, none that is hidden or above, and no longer than file systems take."""


def read_arms(given: Any, where: str) -> dict[str, ArmSpec]:
    """Label -> arm, from a list of kinds, or a mapping of labels to what each changes.

    Args:
        given: As the file has it; from the command line also kinds with commas between them.
        where: What the file is called in errors.

    Raises:
        RecipeError: If an arm is unknown, cannot be compared with the others, or comes twice.
    """
    arms: dict[str, ArmSpec] = {}
    for template, body in _pairs(given, where):
        for label, spec in _each(template, body, where):
            if label.casefold() in {other.casefold() for other in arms}:  # folders of some systems know no case
                raise RecipeError(f"{where}: two arms are called {label!r}", "put what differs into the label")
            alike = next((o for o, s in arms.items() if (s.arm, s.overrides) == (spec.arm, spec.overrides)), None)
            if alike is not None:
                raise RecipeError(f"{where}: arms {alike!r} and {label!r} are the same", "leave one of them out")
            arms[label] = spec
    if len(arms) < 2:
        raise RecipeError(f"{where} has one arm, {next(iter(arms))}", "there is nothing to compare it with")
    return arms


def _pairs(given: Any, where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(given, str):
        given = [name.strip() for name in given.split(",")]
    if isinstance(given, list):
        wrong = [name for name in given if not isinstance(name, str)]
        if wrong:
            raise RecipeError(
                f"{where}: the list of arms holds {wrong[0]!r}, which is no name",
                "arms with keys are a mapping: arms: {plain: {}, late: {arm: llm, graft.layer: 12}}",
            )
        given = [(name, None) for name in given]
    elif isinstance(given, dict):
        given = [(str(name), body) for name, body in given.items()]
    if not isinstance(given, list) or not given:
        raise RecipeError(f"{where} has no arms", "add `arms: [plain, llm, random_frozen, mlp]`")
    for name, body in given:
        if body is not None and not isinstance(body, dict):
            raise RecipeError(f"{where}: arm {name!r} is {body!r}", "give it keys, such as {arm: llm}")
        yield name, {str(key): value for key, value in (body or {}).items()}


def _each(template: str, body: dict[str, Any], where: str) -> Iterator[tuple[str, ArmSpec]]:
    """One arm, or with {each: [...]} one for every choice of values."""
    several = {key: value["each"] for key, value in body.items() if isinstance(value, dict) and set(value) == {"each"}}
    for key, values in several.items():
        if not isinstance(values, list) or not values:
            raise RecipeError(f"{where}: arm {template!r}: {key} has each: {values!r}", "give a list of values")
    for chosen in itertools.product(*several.values()):
        own = body | dict(zip(several, chosen, strict=True))
        label = template
        for key, value in own.items():
            label = label.replace("{" + key + "}", _word(value))
        kind, question = str(own.pop("arm", label)), own.pop("question", None)
        if kind not in ARMS:
            raise RecipeError(
                f"{where}: arm {label!r} is of the unknown kind {kind!r}",
                f"{suggest(kind, ARMS)} Give `arm:`, one of {', '.join(ARMS)}".lstrip(),
            )
        if not LABEL.fullmatch(label):
            raise RecipeError(
                f"{where}: {label!r} is no label",
                "up to 80 letters, digits and _ . + -, no dot in front, as it names a folder; in braces: its keys",
            )
        for key in own:
            _check_override(key, label, where)
        spec = ArmSpec(arm=kind, question=str(question or ARMS[kind].question), overrides=own)
        yield label, spec


def _word(value: Any) -> str:
    if isinstance(value, list):
        return "+".join(_word(one) for one in value)
    return re.sub(r"[^\w.+-]", "-", str(value).rpartition("/")[2])


def _check_override(key: str, label: str, where: str) -> None:
    if key.partition(".")[0] in ("seed", "arm", "data"):
        raise RecipeError(
            f"{where}: arm {label!r} changes {key}: all arms must see the same data in the same order",
            "change it for all arms under `overrides`",
        )


def reference_arm(wanted: str | None, arms: Mapping[str, ArmSpec], where: str) -> str:
    """The arm that others are held against: the one that is wanted, else the first without a block.

    Raises:
        RecipeError: If there is no such arm.
    """
    if wanted is not None and wanted not in arms:
        raise RecipeError(f"{where}: reference {wanted!r} is no arm", f"one of {', '.join(arms)}")
    plain = [label for label, spec in arms.items() if spec.arm == "plain"]
    return wanted or next(iter([*plain, *arms]))


_PLANNED = (("llm", "plain"), ("llm", "random_frozen"), ("llm", "mlp"))
"""The design's: does it help; does the language matter; is it the extra trained layers."""


def _own_controls(label: str, arms: Mapping[str, ArmSpec]) -> list[str]:
    """Of each kind of control the one that shares this LLM arm's changes of the recipe."""
    changes = _spelled_out(arms[label].overrides)
    found = []
    for kind in ("random_frozen", "mlp"):
        same = [other for other, s in arms.items() if s.arm == kind and _spelled_out(s.overrides) == changes]
        found += same if len(same) == 1 else []
    return found


def _spelled_out(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Without the short names of the recipe's keys, and without mappings."""
    flat: dict[str, Any] = {}
    for key, value in overrides.items():
        key = {"llm": "graft.llm", "layer": "graft.layer"}.get(key, key)
        nested = isinstance(value, Mapping)
        flat |= _spelled_out({f"{key}.{k}": v for k, v in value.items()}) if nested else {key: value}
    return flat


def planned_contrasts(
    given: Sequence[Sequence[str]] | None, arms: Mapping[str, ArmSpec], reference: str, where: str
) -> tuple[Pair, ...]:
    """The pairs that are compared: those given, else the design's.

    Of several LLM arms: each against the reference, and against its own controls, a random_frozen
    and an mlp that change the same keys of the recipe in the same way, where there is one of each.

    Raises:
        RecipeError: If a pair is none, of arms that are not there, or comes twice.
    """
    if given is None:
        blocks = [label for label, spec in arms.items() if spec.arm == "llm"]
        if len([label for label in blocks if label != reference]) > 1:
            against = [(label, reference) for label in blocks if label != reference]
            against += [(label, own) for label in blocks for own in _own_controls(label, arms)]
            return tuple(dict.fromkeys(against))
        by_kind = {spec.arm: label for label, spec in reversed(list(arms.items()))}
        pairs = tuple((by_kind[a], by_kind[b]) for a, b in _PLANNED if a in by_kind and b in by_kind)
        return pairs or tuple((label, reference) for label in arms if label != reference)
    for pair in given:
        if len(pair) != 2 or pair[0] == pair[1] or not set(pair) <= set(arms):
            raise RecipeError(
                f"{where}: contrast {list(pair)} is no pair of arms", f"[arm, reference], of {', '.join(arms)}"
            )
    if not given:
        raise RecipeError(f"{where}: contrasts is empty: nothing would be compared", "plan one, or leave it out")
    if len({frozenset(pair) for pair in given}) < len(given):
        raise RecipeError(f"{where}: a contrast is planned twice", "leave one of them out")
    return tuple((a, b) for a, b in given)
