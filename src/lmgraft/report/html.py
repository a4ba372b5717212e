"""Pages from the templates beside this module: HTML is self-contained, without script, and all text in it escaped."""

from __future__ import annotations

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from lmgraft.report.drawing import inline
from lmgraft.words import numbers

_ENVIRONMENT = Environment(
    loader=PackageLoader("lmgraft.report"),
    autoescape=lambda name: name is not None and name.endswith(".html.j2"),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_ENVIRONMENT.filters |= {
    "inline": lambda svg: Markup(inline(svg)),
    "minus": lambda text: text.replace(" - ", f" {numbers.MINUS} "),
}
_ENVIRONMENT.globals |= {"write": numbers}


def render(template: str, **context: Any) -> str:
    """The page of a template.

    Args:
        template: File in templates/, without .j2.
        context: What the template names; a name that is missing is an error.
    """
    return _ENVIRONMENT.get_template(f"{template}.j2").render(context)


def facts_of(environment: dict[str, Any]) -> dict[str, str]:
    """The machine and the versions of a run's record, for a page's list of facts; empty where they are not known."""
    versions = environment.get("versions") or {}
    machine = [
        f"{environment['cpu_count']} CPU cores" if environment.get("cpu_count") else "",
        str(environment.get("platform") or ""),
        f"Python {environment['python']}" if environment.get("python") else "",
    ]
    return {
        "machine": ", ".join(part for part in machine if part),
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items() if version),
    }
