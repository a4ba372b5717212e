"""`lmgraft completion SHELL`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from jsonargparse import ArgumentParser

from lmgraft.cli.command import Command, make_parser, word
from lmgraft.cli.main import COMMANDS, find_command


@dataclass(frozen=True, kw_only=True)
class Completion(Command):
    """Print the script that completes commands and options when Tab is pressed. It is written once and starts no Python
    afterwards. Needs pip install shtab."""

    examples = """examples:
  lmgraft completion bash > ~/.local/share/bash-completion/completions/lmgraft
  lmgraft completion zsh > ~/.zfunc/_lmgraft                # where fpath has ~/.zfunc
  lmgraft completion tcsh > ~/.lmgraft.csh                  # and source it in ~/.cshrc"""
    shell: Literal["bash", "zsh", "tcsh"] = word()
    """Whose script."""

    def run(self) -> int:
        import shtab  # noqa: F401  (that it is missing is said as of any package)

        print(whole_parser().get_completion_script(f"shtab-{self.shell}"))
        return 0


COMMAND = Completion


def whole_parser() -> ArgumentParser:
    """One parser with all commands and their options."""
    whole = ArgumentParser(prog="lmgraft")
    commands = whole.add_subcommands()
    for name, what in COMMANDS.items():
        command = find_command(name)
        commands.add_subcommand(name, command.extend(make_parser(command, f"lmgraft {name}"), ()), help=what)
    return whole
