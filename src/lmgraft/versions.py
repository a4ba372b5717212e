"""What lmgraft needs of other packages: the oldest versions of pyproject.toml, and the extras that bring them."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module, metadata
from typing import Any

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


@contextmanager
def needs(extra: str, what: str) -> Iterator[None]:
    """Say which extra brings a package that an import within does not find.

    Args:
        extra: Its name; "" where the package stands in none.
        what: What needs the package, as an error begins.

    Raises:
        VersionError: Naming the package.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "lmgraft").partition(".")[0]
        if package == "lmgraft":
            raise
        wanted = f'"lmgraft[{extra}]"' if extra else package
        raise VersionError(f"{what} needs the package {package!r}", f"pip install {wanted}") from None


def optional(module: str, extra: str, what: str) -> Any:
    """Import a module of a package that an extra brings; the arguments are those of `needs`.

    Raises:
        VersionError: If the package is not installed, or is older than the extra declares.
    """
    if module not in sys.modules:
        check_versions(extra, module.partition(".")[0])
    with needs(extra, what):
        return import_module(module)


def numbers(version: str) -> tuple[int, ...]:
    """The numbers that a version begins with: (2, 4, 0) of "2.4.0+cpu"."""
    return tuple(map(int, re.findall(r"\d+", version.partition("+")[0])[:3]))
