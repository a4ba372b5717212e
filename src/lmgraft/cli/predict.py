"""`lmgraft predict RUN FILE ...`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from lmgraft import records
from lmgraft.recipes.predict import predict_files

_ABOUT = """Let a run's best checkpoint look at files: a line of JSON for each, with what the task says of it (of
classification the most likely classes and their probabilities). Further options change the recipe, for instance
--data.eval_batch_size 8."""
_EXAMPLES = """examples:
  lmgraft predict runs/photos photo.jpg
  lmgraft predict runs/photos holiday/ --out holiday.jsonl
"""


def run(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="lmgraft predict",
        description=_ABOUT,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("run", type=Path, help="run folder, as lmgraft train made it")
    parser.add_argument("sources", nargs="+", metavar="FILE", help="files, or folders of them")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the lines there (default: print them)")
    options = next((i for i, word in enumerate(argv) if word.startswith("--") and "." in word), len(argv))
    arguments = parser.parse_args(argv[:options])
    rows = predict_files(arguments.run, arguments.sources, argv[options:])
    lines = (json.dumps({"file": file, **prediction}, ensure_ascii=False) + "\n" for file, prediction in rows)
    if arguments.out is None:
        for line in lines:
            sys.stdout.write(line)
            sys.stdout.flush()
        return 0
    with records.atomic_path(arguments.out) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.writelines(lines)
    print(f"Written: {arguments.out}")
    return 0
