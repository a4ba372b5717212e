"""`lmgraft recipes`, and `lmgraft recipes NAME`."""

from __future__ import annotations

from dataclasses import dataclass

from lmgraft.cli.command import Command, word
from lmgraft.errors import RecipeError
from lmgraft.recipes import list_recipes, load_recipe
from lmgraft.recipes.composing import find_recipe
from lmgraft.registry import suggest
from lmgraft.studies.study.config import find_study, list_studies, load_study


@dataclass(frozen=True, kw_only=True)
class Recipes(Command):
    """List the recipes (lmgraft train) and studies (lmgraft study) that come with lmgraft, or print one with all that
    it extends and all defaults filled in, as YAML to copy and change. Further options change it, as in those
    commands."""

    examples = """examples:
  lmgraft recipes
  lmgraft recipes image/fashion_vit
  lmgraft recipes image/fashion_vit --train.epochs 10 > mine.yaml
  lmgraft recipes image/fashion_controls"""
    takes_more = True
    name: str | None = word(default=None)
    """A recipe or study of the list, or a path to a recipe's .yaml file."""

    def run(self) -> int:
        if self.name is None:
            for title, names, find in (
                ("recipes: lmgraft train NAME", list_recipes(), find_recipe),
                ("\nstudies: lmgraft study NAME", list_studies(), find_study),
            ):
                print(title)
                width = max(map(len, names))
                for name in names:
                    print(f"  {name:<{width}}  {_headline(find(name))}")
            return 0
        studies, name = list_studies(), self.name.removesuffix("_debug")
        if name in studies:
            text = load_study(self.name, self.more).yaml
        elif name in list_recipes() or name.endswith((".yaml", ".yml")):
            text = load_recipe(self.name, self.more).yaml
        else:
            raise RecipeError(
                f"there is no recipe or study {self.name!r}", suggest(self.name, [*list_recipes(), *studies])
            )
        print(text, end="")
        return 0


COMMAND = Recipes


def _headline(text: str) -> str:
    """What a file's first line of comment says of it."""
    first = text.partition("\n")[0]
    return first.removeprefix("#").strip() if first.startswith("#") else ""
