"""`lmgraft explore RUN [RUN ...]`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lmgraft.cli.command import Command, option, say, word
from lmgraft.errors import RecipeError


@dataclass(frozen=True, kw_only=True)
class Explore(Command):
    """Look at finished runs item by item in a browser: which tokens stand out at a stage or for an attention head, over
    a threshold that is moved by hand, and what each run predicts; test items by number, or files of your own. The page
    is served on 127.0.0.1 alone, needs no network, and uploaded files are gone when it ends (extra: explore)."""

    examples = """Further options change the runs' recipes, for instance --data.root DIR. Ctrl-C ends it.

examples:
  lmgraft explore runs/plain runs/llm runs/random_frozen
  lmgraft explore runs/llm --port 8000
  lmgraft explore runs/llm --masks images-with-masks --masks.root photos"""
    takes_more = True
    runs: list[Path] = word(many=True, metavar="RUN")
    """Run folders of one data set, as lmgraft train and lmgraft study made them."""
    port: int = option(7860, metavar="N")
    """On which port; 0: any that is free."""
    largest: int = option(64, metavar="MIB")
    """How large an uploaded file may be, in MiB."""
    masks: str | None = option(None, metavar="KIND")
    """Look at images with masks in place of the runs' test items, as in lmgraft analyze."""

    def run(self) -> int:
        from lmgraft.recipes.kinds import images_with_masks
        from lmgraft.report.explore.page import serve
        from lmgraft.studies.explore import open_explorer
        from lmgraft.versions import optional

        if self.largest < 1:
            raise RecipeError(f"--largest {self.largest} must be at least 1")
        optional("gradio", "explore", "lmgraft explore")  # missing is an error before models are loaded
        say("Opening the runs ...")
        explorer = open_explorer(self.runs, *images_with_masks(self.masks, self.more))
        serve(explorer, self.port, self.largest, lambda address: say(f"Open {address} in a browser; Ctrl-C ends it."))
        return 0


COMMAND = Explore
