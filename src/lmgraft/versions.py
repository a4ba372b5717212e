"""The oldest versions that lmgraft takes of other packages, as pyproject.toml declares them, and what is installed."""

from __future__ import annotations

import re
from importlib import metadata

from lmgraft.errors import VersionError

# Not packaging's parser, whose import takes as long as all else that `import lmgraft` does.
_DECLARED = re.compile(r"""([\w.-]+)(?:\[.*\])?>=([\d.]+)(?:; extra == ["'](\w+)["'])?""")


def check_versions(extra: str = "", *names: str) -> None:
    """Refuse packages that are older than lmgraft declares. What is not installed at all is passed over.

    Args:
        extra: The extra that declares them; "" is the core.
        names: Packages to check; all of them if none is given.

    Raises:
        VersionError: Naming the first such package, its version, and the one needed.
    """
    for declared in filter(None, map(_DECLARED.fullmatch, metadata.requires("lmgraft") or ())):
        name, oldest, of = declared.groups(default="")
        if of != extra or name not in (names or (name,)):
            continue
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        if () < numbers(version) < numbers(oldest):
            asker = f"lmgraft[{extra}]" if extra else "lmgraft"
            raise VersionError(
                f"{asker} needs {name} {oldest} or newer, and {name} {version} is installed",
                f'pip install --upgrade "{name}>={oldest}"',
            )


def numbers(version: str) -> tuple[int, ...]:
    """The numbers that a version begins with: (2, 4, 0) of "2.4.0+cpu"."""
    return tuple(map(int, re.findall(r"\d+", version.partition("+")[0])[:3]))
