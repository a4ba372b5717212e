"""Import the core and use it, with nothing installed, or nothing visible, but the core's own dependencies.

Run by `tests/test_bare.py` in this environment, where whatever else is installed is hidden, and by
`make check-bare` in one that holds the wheel alone. Not a test file itself.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from importlib import metadata
from tempfile import TemporaryDirectory
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOMS = ("errors", "contracts", "registry", "records", "checkpoint", "block", "graft")


def needed(root: str) -> set[str]:
    """Names of `root`, of all that it needs without extras, and of what those need with the extras it asks for."""
    found: set[tuple[str, str]] = set()
    queue = [(root, "")]
    while queue:
        name, extra = queue.pop()
        if (name, extra) in found:
            continue
        found.add((name, extra))
        try:
            requirements = [Requirement(text) for text in metadata.requires(name) or ()]
        except metadata.PackageNotFoundError:  # for another platform
            continue
        for requirement in requirements:
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                queue += [(canonicalize_name(requirement.name), wanted) for wanted in ("", *requirement.extras)]
    return {name for name, _ in found}


def hidden() -> set[str]:
    """Top-level modules of installed packages that the core does not need."""
    core = needed("lmgraft")
    return {
        module
        for module, packages in metadata.packages_distributions().items()
        if not core.intersection(map(canonicalize_name, packages))
    }


class Hiding:
    """A finder that does not find what is hidden."""

    def __init__(self, finder: Any, names: set[str]) -> None:
        self.finder, self.names = finder, names

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        return None if name.partition(".")[0] in self.names else self.finder.find_spec(name, path, target)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.finder, name)


def modules(room: str) -> list[str]:
    """Every module of a room."""
    package = importlib.import_module(f"lmgraft.{room}")
    below = pkgutil.walk_packages(getattr(package, "__path__", ()), f"{package.__name__}.")
    return [package.__name__, *(module.name for module in below)]


def main() -> None:
    names = hidden()
    sys.meta_path[:] = [Hiding(finder, names) for finder in sys.meta_path]
    import torch
    from torch import nn

    import lmgraft
    from lmgraft.block import BlockConfig, FrozenBlock, Provenance

    imported = [importlib.import_module(name).__name__ for room in ROOMS for name in modules(room)]
    config = BlockConfig(dim=16, num_heads=2, num_kv_heads=2, head_dim=8, mlp_dim=24)
    provenance = Provenance(
        source="random", family="llama", layers=(0,), final_norm="unit", num_layers=1, file_dtypes=("F32",)
    )
    tensors = {name: torch.randn(shape) for name, shape in config.tensor_shapes().items()}
    block = FrozenBlock(config, [tensors], provenance=provenance)

    class Host(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.encoder(x)
            return out

    model = lmgraft.graft(Host(), block, at="encoder", host_spec={"embed_dim": 8}).eval()
    x = torch.randn(2, 5, 8)
    with TemporaryDirectory() as folder:
        lmgraft.save_pretrained(model, folder)
        again = lmgraft.load_pretrained(folder, model=Host(), llm=block)
    torch.testing.assert_close(again(x), model(x))
    assert lmgraft.ungraft(model)(x).shape == x.shape
    message = ""
    try:
        lmgraft.compare  # noqa: B018
    except ImportError as error:
        message = str(error)
    assert "lmgraft[image]" in message, "lmgraft.compare needs the extra `image`, and it was there"
    sys.stdout.write(f"{len(imported)} modules imported\n")


if __name__ == "__main__":
    main()
