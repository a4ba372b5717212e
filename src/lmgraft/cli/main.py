"""`lmgraft COMMAND`: finds the command, and turns mistakes into one-screen errors.

Commands are imported when called, so `lmgraft --help` needs nothing heavy.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING

from lmgraft.errors import LmgraftError
from lmgraft.registry import suggest
from lmgraft.versions import check_versions, needs

if TYPE_CHECKING:
    from lmgraft.cli.command import Command

COMMANDS = {
    "quickstart": "a real LLM block in a small ViT on real images, three arms, a report page; minutes",
    "recipes": "the recipes and studies that come with lmgraft; one of them, all resolved",
    "train": "train a recipe in a run folder, or go on with an interrupted run",
    "evaluate": "test metrics of a run's best checkpoint, or its robustness: corruptions, ImageNet-C, -A, -R, ...",
    "study": "arms x seeds with common random numbers, honest statistics, a verdict in words, a page",
    "scan": "which LLM, layer and position: cheap scores of each, short trainings, how well they agreed",
    "analyze": "what the block does to tokens: which stand out, do they lie on the object, are they needed; a page",
    "explore": "the same by hand, item by item in a browser: stages, attention heads, a threshold, predictions",
    "predict": "what a trained model says of files: a line of JSON for each",
    "prepare": "fetch or make a data set once, before any training",
    "check-data": "find unreadable files, missing classes and duplicates before a training does",
    "export": "write a trained model as ONNX or for torch.export.load, and compare it with the model",
    "inspect": "anatomy of an LLM and what one block of it costs; reads headers only",
    "bench": "what a frozen block costs in time and memory; --explain: which form a model takes and why",
    "cache": "list, check or remove what has been fetched",
    "completion": "the script that completes commands and options in bash, zsh or tcsh",
}


def usage() -> str:
    width = max(map(len, COMMANDS))
    listed = "\n".join(f"  {name:<{width}}  {what}" for name, what in COMMANDS.items())
    return (
        "usage: lmgraft COMMAND ...\n\n"
        "Put one frozen block of a language model into a vision encoder, train it, and find out\n"
        f"whether it helped.\n\ncommands:\n{listed}\n\n"
        "lmgraft COMMAND --help says more. LMGRAFT_CACHE moves the cache of fetched files."
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status.

    0: well. 1: damage was found. 2: a mistake in what was asked. 130, 143: stopped by Ctrl-C or
    SIGTERM; trainings have saved.
    """
    name, *words = list(sys.argv[1:] if argv is None else argv) or [""]
    try:
        return _run(name, words)
    except LmgraftError as error:
        print(f"lmgraft {name}: {error}", file=sys.stderr)
        return error.exit_status
    except SystemExit as ended:  # a training's further processes
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BrokenPipeError:  # the reader of our output, such as head, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print(f"\nlmgraft {name}: interrupted; the same command (train: with --resume) goes on", file=sys.stderr)
        return 128 + signal.SIGINT


def _run(name: str, words: list[str]) -> int:
    if name in ("", "-h", "--help"):
        print(usage(), flush=True)
        return 0 if name else 2
    if name == "--version":
        print(f"lmgraft {version('lmgraft')}", flush=True)
        return 0
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # for classes of the user's own, such as --task my_package.MyTask
    if name not in COMMANDS:
        print(f"lmgraft: there is no command {name!r}. {suggest(name, COMMANDS)}", file=sys.stderr)
        return 2
    check_versions("image")
    with needs("image", "this command"):
        return _call(name, words)


def _call(name: str, words: list[str]) -> int:
    from lmgraft.cli.command import make_parser, parse

    command, prog = find_command(name), f"lmgraft {name}"
    if not {"-h", "--help"}.isdisjoint(words) or (not words and command.needs_words()):
        print(command.extend(make_parser(command, prog), words).format_help(), flush=True)
        return 0 if words else 2
    return parse(command, prog, words).run()


def find_command(name: str) -> type[Command]:
    """The class of a row of `COMMANDS`."""
    command: type[Command] = import_module(f"lmgraft.cli.{name.replace('-', '_')}").COMMAND
    return command
