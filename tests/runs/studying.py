"""What tests of studies share: an executor without processes, what a run saw, and workers that die."""

import hashlib
import os
import time
from pathlib import Path

from pytorch_lightning import Callback

from lmgraft.errors import LmgraftError
from lmgraft.studies.engine.missing import Done, brief
from lmgraft.studies.engine.runs import train
from lmgraft.studies.study import run as run_module
from lmgraft.studies.study.config import parse_study
from lmgraft.studies.study.run import run_study

STUDY = """
recipe: {recipe}
arms: [plain, llm, random_frozen]
seeds: 2
overrides: {{train.epochs: 1}}
"""


class Here:
    """Does runs in this process; remembers their names."""

    def __init__(self):
        self.names = []

    def __call__(self, runs, say):
        for run in runs:
            self.names.append(run.name)
            started, error = time.monotonic(), None
            try:
                train(run)
            except LmgraftError as failure:
                error = brief(failure)
            yield Done(cell=run, seconds=time.monotonic() - started, error=error)


def no_executor(runs, say):
    """Fails the test: nothing is to be trained."""
    raise AssertionError(f"a training was begun: {[run.name for run in runs]}")


def study_of(recipe, *arguments, text=STUDY):
    return parse_study(text.format(recipe=recipe), arguments, name="tiny")


def without_flops(patch):
    """Counting operations and timing steps have tests of their own."""
    patch.setattr(run_module, "counted_flops", lambda *_: {})
    patch.setattr(run_module, "timed_pairs", lambda *_, **__: {})


def run_here(study, out, **options):
    """Run a study in this process; the result, the names of what was trained, and what was said."""
    executor, said = options.pop("executor", Here()), []
    result = run_study(study, Path(out), executor=executor, say=said.append, **options)
    return result, getattr(executor, "names", None), said


class Watch(Callback):
    """Notes what every run begins with and is shown, after mixing: run folder -> weights, batches."""

    def __init__(self):
        self.weights, self.batches = {}, {}

    def on_train_start(self, trainer, pl_module):
        run = "/".join(Path(trainer.default_root_dir).parts[-2:])
        self.weights[run] = {name: digest(t) for name, t in pl_module.model.state_dict().items()}
        seen = self.batches.setdefault(run, [])

        def note(module, inputs):
            if module.training:
                seen.append(digest(inputs[0]))

        pl_module.model.register_forward_pre_hook(note)


def digest(tensor):
    return hashlib.sha256(tensor.detach().contiguous().numpy().tobytes()).hexdigest()


def die_once_at(run, *_):
    """A worker that is killed in its first attempt at each run."""
    marker = Path(f"{run.folder}.died")
    if not marker.exists():
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.touch()
        os._exit(9)
    train(run)


def die_with_llm_at(run, *_):
    """A worker that is killed whenever it has the LLM's arm."""
    if run.arm == "llm":
        os._exit(9)
    train(run)


def fall_over_at(run, *_):
    """A worker that meets with the LLM's arm what is no mistake of the user's."""
    if run.arm == "llm":
        raise RuntimeError("CUDA out of memory")
    train(run)


def have_a_bug_at(run, *_):
    """A worker that meets a bug with the LLM's arm."""
    if run.arm == "llm":
        raise KeyError("no such thing")
    train(run)
