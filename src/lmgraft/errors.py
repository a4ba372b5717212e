"""Errors written for the person who meets them: what was wrong, where, and what to do.

Every room raises these; this room knows no other.
"""


class LmgraftError(ValueError):
    """A mistake in what was asked for or handed in, as opposed to a bug in lmgraft.

    Args:
        message: What was wrong, naming the file, key or value.
        remedy: What the reader can do about it.
    """

    exit_status = 2
    """Of the command that it ends."""

    def __init__(self, message: str, remedy: str = "") -> None:
        self.message = message
        self.remedy = remedy
        super().__init__(f"{message}\n  What to do: {remedy}" if remedy else message)

    def __reduce__(self) -> tuple[type["LmgraftError"], tuple[str, str]]:
        # Workers send errors home by pickle; the default would lose the remedy.
        return type(self), (self.message, self.remedy)


def first_line(error: BaseException) -> str:
    """What another library's error says, in one line; its type where it says nothing."""
    lines = (line.strip() for line in str(error).splitlines())
    return next(filter(None, lines), type(error).__name__)


class VersionError(LmgraftError, ImportError):
    """A package that is not installed, or older than lmgraft takes."""


class SourceError(LmgraftError):
    """A block source that cannot be found, fetched or understood."""


class CheckpointError(LmgraftError):
    """A weight file that is damaged, incomplete or not what it claims to be."""


class BlockError(LmgraftError):
    """A block that cannot be built, or is not the block that was asked for."""


class HostError(LmgraftError):
    """A backbone into which a block cannot be put in the way that was asked."""


class DataError(LmgraftError):
    """A data set that is missing, damaged or not what it claims to be."""


class RecipeError(LmgraftError):
    """A recipe or command-line override that does not fit the signatures."""


class RunError(LmgraftError):
    """A run folder that cannot be continued, evaluated or reported."""


class ExportError(LmgraftError):
    """A model that cannot be written as a program, or a program that computes something else."""


class ApproximationError(LmgraftError):
    """An approximation that cannot be had here, or whose error cannot be measured."""
