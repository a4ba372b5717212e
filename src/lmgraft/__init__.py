"""lmgraft: one frozen LLM block as one more layer of any vision encoder.

Importing this package imports nothing heavy; a public name imports what it needs when it is first asked for.
"""

import sys as _sys
from importlib import metadata as _metadata
from types import ModuleType as _ModuleType
from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

from lmgraft.registry import lazily as _lazily
from lmgraft.versions import check_versions as _check_versions

if _TYPE_CHECKING:
    from lmgraft.block import BlockConfig, FrozenBlock, inspect_llm, load_block
    from lmgraft.graft import (
        GraftConfig,
        approximate,
        baked,
        exact,
        graft,
        load_pretrained,
        reading,
        reading_all_tokens,
        save_pretrained,
        ungraft,
    )
    from lmgraft.recipes.predict import load_run
    from lmgraft.studies.study.compare import compare

_check_versions()

__version__ = _metadata.version("lmgraft")

__all__ = [
    "BlockConfig",
    "FrozenBlock",
    "GraftConfig",
    "approximate",
    "baked",
    "compare",
    "exact",
    "graft",
    "inspect_llm",
    "load_block",
    "load_pretrained",
    "load_run",
    "reading",
    "reading_all_tokens",
    "save_pretrained",
    "ungraft",
]

_BLOCK = ("BlockConfig", "FrozenBlock", "inspect_llm", "load_block")
_HOMES = dict.fromkeys(__all__, "lmgraft.graft") | dict.fromkeys(_BLOCK, "lmgraft.block")
__getattr__ = _lazily(
    __name__, _HOMES | {"compare": "lmgraft.studies.study.compare", "load_run": "lmgraft.recipes.predict"}
)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(_ModuleType):
    """Keeps `lmgraft.graft` the function: an import of the subpackage of this name would put that in its place."""

    @property
    def graft(self) -> _Any:
        return vars(self).get("_graft") or __getattr__("graft")

    @graft.setter
    def graft(self, value: _Any) -> None:
        if not isinstance(value, _ModuleType):
            vars(self)["_graft"] = value


_sys.modules[__name__].__class__ = _Package
