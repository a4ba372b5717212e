"""A study's file: which arms, how many seeds, and what is compared, all fixed before anything runs.

    recipe: image/fashion_vit
    overrides: {train.epochs: 3}
    arms: [plain, llm, random_frozen, mlp]
    seeds: 5

or, with arms that change the recipe, by name:

    arms:
      plain: {}
      llm: {graft.layer: 12}
      "layer_{graft.layer}": {arm: llm, graft.layer: {each: [0, 4, 8]}}
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from importlib import resources
from typing import TYPE_CHECKING, Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from lmgraft.contracts import Metric
from lmgraft.errors import LmgraftError, RecipeError
from lmgraft.recipes.composing import Tie, compose, with_debug
from lmgraft.recipes.named import find_named, list_named
from lmgraft.recipes.options import explained, read_options
from lmgraft.recipes.recipe import load_recipe, recipe_parser
from lmgraft.registry import METRICS, suggest
from lmgraft.studies.study.arms import LABEL, ArmSpec, Pair, planned_contrasts, read_arms, reference_arm

if TYPE_CHECKING:
    from lmgraft.studies.robustness.run import RobustnessConfig


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """What a study compares."""

    recipe: str = ""
    """Name or path of the recipe that all arms share."""
    name: str | None = None
    """Of its folder, runs/NAME; None: the file's."""
    question: str = "Does the frozen LLM block help?"
    """The page's title."""
    arms: Any = None
    """List of arms, or mapping of label -> {arm, question, dotted recipe keys}; {each: [...]} makes several."""
    seeds: int | list[int] = 5
    """How many, from 0, or which."""
    learning_rates: list[float] = field(default_factory=list)
    """optim.lr to try for every arm; each takes the one with the best mean on the held-out items."""
    rate_seeds: int | list[int] = 0
    """Seeds at which learning_rates are tried, and which are not compared: how many, behind those of `seeds`, or which.
    The seeds compared are then trained at each arm's own rate alone. 0: every seed at every rate."""
    metric: str | None = None
    """What is compared, one of the task's metrics (of classification accuracy, top5, nll); null: its first one."""
    reference: str | None = None
    """Label of the arm that others are held against; None: the one without a block."""
    contrasts: list[list[str]] | None = None
    """Planned pairs [arm, reference]; None: llm against plain, random_frozen and mlp; of several llm arms each against
    the reference, and a random_frozen and an mlp of the same keys."""
    margin: float | None = None
    """What counts as equal, in the metric's own unit; None: the metric's (accuracy: half a point)."""
    confidence: float = 0.95
    """Of intervals; tests are at 1 minus this."""
    robustness: dict[str, Any] | None = None
    """A suite on which every run is evaluated too: {suite: NAME, limit: items a cell, and the suite's own options}; by
    default corruptions, whose options are corruptions, seed and frost. null: none."""
    overrides: dict[str, Any] = field(default_factory=dict)
    """Dotted recipe keys -> values, for all arms."""
    notes: list[str] = field(default_factory=list)
    """Confounds and cautions that the page must state."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """A checked study."""

    name: str
    recipe: str
    question: str
    arms: dict[str, ArmSpec]
    seeds: tuple[int, ...]
    learning_rates: tuple[float, ...]
    rate_seeds: tuple[int, ...]
    metric: Metric
    reference: str
    contrasts: tuple[Pair, ...]
    margin: float
    confidence: float
    robustness: RobustnessConfig | None
    overrides: dict[str, Any]
    arguments: tuple[str, ...]
    """Recipe options from the command line, for all arms: over `overrides`, under the arms' own."""
    notes: tuple[str, ...]

    @property
    def yaml(self) -> str:
        """The study with everything resolved; `parse_study` reads the same study back."""
        content = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("metric", "arms")}
        content |= {"metric": self.metric.name, "arms": {n: _flat(spec) for n, spec in self.arms.items()}}
        content |= {"seeds": list(self.seeds), "learning_rates": list(self.learning_rates)}
        content["rate_seeds"] = list(self.rate_seeds)
        content |= {"contrasts": [list(pair) for pair in self.contrasts], "notes": list(self.notes)}
        content["arguments"] = list(self.arguments)
        content["robustness"] = None if self.robustness is None else self.robustness.to_dict()
        text: str = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100)
        return text


def list_studies() -> list[str]:
    """Names of the studies that come with lmgraft."""
    return list_named(resources.files("lmgraft.studies").joinpath("files"))


def find_study(name: str) -> str:
    """The YAML text of a study by name or path, or with "_debug" behind it of its debug variant; see `find_named`."""
    root = resources.files("lmgraft.studies").joinpath("files")
    return with_debug(name, lambda name: find_named(name, root, "study"), lambda name: find_study(name), _TIES)


def load_study(name: str, arguments: Sequence[str] = ()) -> Study:
    """Read a study by name or path and lay command-line options over it.

    Args:
        name: As `list_studies` gives it, or a path to a YAML file.
        arguments: Options of the study (--seeds 3, --metric nll) and of the recipe (--train.epochs 1).

    Raises:
        RecipeError: If a key is unknown, a value does not fit, or the plan cannot answer its question.
    """
    return parse_study(find_study(name), arguments, name=_short(name), where=name)


def _short(name: str) -> str:
    """The name of a study's folder: "controls_debug" of "my/controls.yaml_debug"."""
    return name.replace(".yaml", "").rpartition("/")[2]


def parse_study(text: str, arguments: Sequence[str] = (), *, name: str, where: str = "study") -> Study:
    """As `load_study`, from the YAML text."""
    parser = study_parser()
    composed = compose(text, where, find_study, _TIES)
    try:
        content = yaml.safe_load(composed)
    except yaml.YAMLError as error:
        raise RecipeError(f"{where} is not readable YAML: {error}", "mend it") from None
    if not isinstance(content, dict):
        raise RecipeError(f"{where} holds no keys", "lmgraft study --help shows a study")
    content = {key: value for key, value in content.items() if value is not None}  # null is the default, of any key
    earlier = _list_of_text(content.pop("arguments", None), where)
    own, further = _split(arguments)
    try:
        from_file = parser.parse_string(yaml.safe_dump(content, sort_keys=False), defaults=True)
        of_file = from_file.metric, from_file.margin
        parsed = parser.parse_args(own, namespace=from_file) if own else from_file
        config = parser.instantiate(parsed)
    except LmgraftError:
        raise
    except (ArgumentError, TypeError, ValueError) as error:
        given = {option.key: option.words[-1] for option in read_options(own) if option.words}
        what = explained(error, StudyConfig, content, given)
        raise RecipeError(f"{where}: {what}", "lmgraft study --help lists every key") from None
    read = StudyConfig(**vars(config))
    if not any(argument[2:].partition("=")[0] == "margin" for argument in own):
        read = _with_metrics_margin(read, *of_file, (*earlier, *further))
    if "arms" in _keys(own):
        read = _without_arms_left_out(read, read_arms(content.get("arms"), where), where, given=_keys(own))
    return check_study(read, (*earlier, *further), name=name, where=where)


def _keys(own: Sequence[str]) -> list[str]:
    return [argument[2:].partition("=")[0].partition(".")[0] for argument in own if argument.startswith("--")]


_TIES = (Tie("metric", "margin", default="accuracy"),)  # what files that name no metric meant from the first
"""A study that extends another one and changes the metric does not keep a margin in the other metric's unit."""


def _without_arms_left_out(
    config: StudyConfig, before: Mapping[str, ArmSpec], where: str, *, given: Sequence[str]
) -> StudyConfig:
    """The file's contrasts and reference without those of arms that the command line leaves out; it is noted.

    Args:
        given: Keys that the command line gives itself, which stay.
    """
    here = read_arms(config.arms, where)
    gone = [pair for pair in config.contrasts or [] if any(arm in before and arm not in here for arm in pair)]
    if gone and "contrasts" not in given:
        kept = [pair for pair in config.contrasts or [] if pair not in gone] or None
        note = (
            f"Of the file's contrasts {', '.join(' - '.join(pair) for pair in gone)} are not compared: --arms leaves "
            f"out their arms{'' if kept else '; those by default are'}."
        )
        config = replace(config, contrasts=kept, notes=[*config.notes, note])
    if config.reference in before and config.reference not in here and "reference" not in given:
        other = reference_arm(None, here, where)
        note = f"The file's reference, {config.reference}, is not among --arms; {other} is taken."
        config = replace(config, reference=None, notes=[*config.notes, note])
    return config


def _metric_of(config: StudyConfig, arguments: Sequence[str]) -> Metric:
    """The metric that a configuration names, or the first one of its recipe's task.

    Raises:
        RecipeError: If there is none of this name.
    """
    if config.metric is not None and config.metric in METRICS:
        metric: Metric = METRICS.find(config.metric)
        return metric
    return load_recipe(config.recipe, [*options_of(config.overrides), *arguments]).metric(config.metric)


def _with_metrics_margin(
    config: StudyConfig, before: str | None, margin: float | None, arguments: Sequence[str]
) -> StudyConfig:
    """Half a point is no margin of a cross-entropy: with another metric than the file's goes that metric's margin."""
    if config.metric == before or margin is None:
        return config
    own = _metric_of(config, arguments)
    before = _metric_of(replace(config, metric=before), arguments).name
    if own.name == before:
        return config
    note = (
        f"The metric was set to {own.name} from the command line in place of {before}: the margin is "
        f"{own.margin}, {own.name}'s own, and not {margin}, which the file gives for {before}."
    )
    notes = [*config.notes, *([] if note in config.notes else [note])]
    return replace(config, margin=None, notes=notes)


def _list_of_text(given: Any, where: str) -> list[str]:
    """`arguments` of a study.yaml that was written by lmgraft: options of the recipe."""
    if not isinstance(given or [], list) or not all(isinstance(one, str) for one in given or []):
        raise RecipeError(f"{where}: arguments={given!r} is no list of options", "put such keys under `overrides`")
    return _split(given or [])[1]


def study_parser() -> ArgumentParser:
    """The schema of a study's file: `StudyConfig`'s signature."""
    parser = ArgumentParser(prog="lmgraft study", exit_on_error=False, allow_abbrev=False)
    parser.add_class_arguments(StudyConfig)
    return parser


def check_study(
    config: StudyConfig, arguments: Sequence[str], *, name: str, where: str, metric: Metric | None = None
) -> Study:
    """Resolve a configuration, or say what is wrong with it.

    Args:
        metric: In place of the one that `config` names.

    Raises:
        RecipeError: See `load_study`.
    """
    if not config.recipe:
        raise RecipeError(f"{where} names no recipe", "add `recipe: image/fashion_vit` or another")
    name = config.name or name
    if not LABEL.fullmatch(name):
        raise RecipeError(f"{where}: name={name!r} names no folder", "up to 80 letters, digits and _ . + -")
    arms = read_arms(config.arms, where)
    seeds = _check_seeds(config.seeds, where)
    if not 0.5 < config.confidence < 1:
        raise RecipeError(f"{where}: confidence={config.confidence} must lie between 0.5 and 1")
    _check_keys(config, arms, where)
    metric = metric or _metric_of(config, arguments)
    margin = metric.margin if config.margin is None else config.margin
    if not 0 < margin < math.inf or (metric.largest_margin is not None and margin > metric.largest_margin):
        meant = f" ({margin * metric.scale:g} {metric.difference_unit})" if math.isfinite(margin) else ""
        raise RecipeError(
            f"{where}: margin={margin}{meant} is no margin of {metric.title}",
            f"it is a positive number in the metric's own unit; {metric.name} takes {metric.margin} by itself",
        )
    reference = reference_arm(config.reference, arms, where)
    return Study(
        name=name,
        recipe=config.recipe,
        question=config.question,
        arms=arms,
        seeds=seeds,
        learning_rates=tuple(config.learning_rates),
        rate_seeds=_rate_seeds(config, seeds, where),
        metric=metric,
        reference=reference,
        contrasts=planned_contrasts(config.contrasts, arms, reference, where),
        margin=margin,
        confidence=config.confidence,
        robustness=None if config.robustness is None else _robustness(config.robustness, where),
        overrides=dict(config.overrides),
        arguments=tuple(arguments),
        notes=tuple(config.notes),
    )


def _robustness(content: Mapping[str, Any], where: str) -> RobustnessConfig:
    from lmgraft.studies.robustness.run import robustness_config  # with Lightning, which takes seconds to import

    return robustness_config(content, where)


_MOST_SEEDS, _LARGEST_SEED = 1000, 2**32 - 1


def _check_seeds(given: int | Sequence[int], where: str) -> tuple[int, ...]:
    count = given if isinstance(given, int) else len(given)
    if count < 0 or count > _MOST_SEEDS:
        raise RecipeError(
            f"{where}: {count} seeds cannot be trained", f"seeds is how many, up to {_MOST_SEEDS}, or a list of them"
        )
    seeds = tuple(range(given)) if isinstance(given, int) else tuple(given)
    _check_different(seeds, "seeds", where)
    if len(seeds) < 2:
        raise RecipeError(
            f"{where}: {len(seeds)} seed{'s' * (len(seeds) != 1)} cannot tell an effect from luck: differences have "
            "no spread",
            "give at least 2 seeds for a look, 5 for a verdict",
        )
    return seeds


def _check_different(seeds: Sequence[int], key: str, where: str) -> None:
    if len(set(seeds)) < len(seeds) or not all(0 <= seed <= _LARGEST_SEED for seed in seeds):
        raise RecipeError(f"{where}: {key}={list(seeds)} must be different, and each from 0 to 2**32 - 1")


def _rate_seeds(config: StudyConfig, seeds: Sequence[int], where: str) -> tuple[int, ...]:
    """The seeds at which rates are tried."""
    given = config.rate_seeds
    if isinstance(given, int):
        if not 0 <= given <= _MOST_SEEDS:
            raise RecipeError(f"{where}: rate_seeds={given} is not between 0 and {_MOST_SEEDS}")
        given = [max(seeds) + 1 + i for i in range(given)]
    chosen = tuple(given)
    _check_different(chosen, "rate_seeds", where)
    both = sorted(set(chosen) & set(seeds))
    if both:
        raise RecipeError(f"{where}: seed {both[0]} both chooses rates and is compared", "give rate_seeds others")
    if chosen and len(config.learning_rates) < 2:
        raise RecipeError(f"{where}: rate_seeds without rates to choose from", "give learning_rates, at least two")
    return chosen


def _check_keys(config: StudyConfig, arms: Mapping[str, ArmSpec], where: str) -> None:
    """Refuse recipe keys that the study itself sets, and learning rates that share a folder."""
    rates = config.learning_rates
    if any(not 0 < rate < math.inf for rate in rates):
        raise RecipeError(f"{where}: learning_rates must be positive, got {rates}")
    if len({f"{rate:g}" for rate in rates}) < len(rates):
        raise RecipeError(f"{where}: learning_rates={rates} are not all different", "leave out what comes twice")
    for place, keys in (("overrides", config.overrides), *((f"arm {n!r}", s.overrides) for n, s in arms.items())):
        for key in map(str, keys):
            if key in ("seed", "arm"):
                raise RecipeError(f"{where}: {place} sets {key}, which is the study's to choose", f"give {key}s")
            if rates and key in ("optim.lr", "optim"):
                raise RecipeError(f"{where}: {place} sets {key}, and learning_rates does", "leave out one of them")


def options_of(overrides: Mapping[str, Any]) -> list[str]:
    """Dotted keys and values as a recipe's command-line options."""
    return [f"--{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in overrides.items()]


def _flat(spec: ArmSpec) -> dict[str, Any]:
    return {"arm": spec.arm, "question": spec.question, **spec.overrides}


def _split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Options of the study, and those of the recipe."""
    known = {f.name for f in fields(StudyConfig)}
    own: list[str] = []
    further: list[str] = []
    into, values = further, 0
    for argument in arguments:
        if argument.startswith("--"):
            key, equals, _ = argument[2:].partition("=")
            if key in ("seed", "arm"):
                raise RecipeError(f"--{key} is the study's to choose", f"give --{key}s")
            into, values = own if key.partition(".")[0] in known else further, len(equals)
            if into is further and "." not in key:
                _check_undotted(key, known)
        else:
            values += 1
            if into is own and values > 1:
                given = ", ".join([*own[1 - values :], argument] if "=" not in own[-1] else [argument])
                raise RecipeError(f"{own[-values]} takes one value, got {given}", f'a list is written "[{given}]"')
        into.append(argument)
    return own, further


def _check_undotted(key: str, known: Iterable[str]) -> None:
    """A key without a dot is the study's, or names a part of the recipe.

    Raises:
        RecipeError: If it does neither.
    """
    if key in ("llm", "layer"):
        return
    parts = {action.dest.partition(".")[0] for action in recipe_parser()._actions}
    if key not in parts:
        raise RecipeError(f"there is no option --{key}", suggest(key, [*known, "llm", "layer", *parts]))
