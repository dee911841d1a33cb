"""The coder's tools: their names, what they do, their arguments."""

from typing import Literal

from pydantic import Field

from .reading_tools import READING_TOOLS
from .tools import Arguments


class Edit(Arguments):
    """Replace a text that stands exactly once in a file."""

    path: str
    old: str = Field(min_length=1)
    new: str


class Create(Arguments):
    """Make a new file of the engine."""

    path: str
    content: str


class Delete(Arguments):
    """Remove a file."""

    path: str


class SetLevers(Arguments):
    """Set levers of the variant."""

    levers: dict[str, str] = Field(min_length=1)


class Run(Arguments):
    """Start the engine in its sandbox and let it decode a tiny input."""


class Check(Arguments):
    """Compare the engine's answers with the reference's on a few documents."""


class Test(Arguments):
    """Compare one of the engine's kernels with plain arithmetic in float64, in many shapes."""

    kernel: Literal[
        "all", "matrix", "norm", "rotation", "attention", "feed-forward", "native-matrix",
        "gpu-matrix",
    ] = "all"  # fmt: skip


class Finish(Arguments):
    """The variant is done."""

    summary: str = Field(max_length=1000)


class GiveUp(Arguments):
    """The hypothesis can't be turned into a variant."""

    reason: str = Field(min_length=5, max_length=500)


CODER_TOOLS: dict[str, type[Arguments]] = {
    **READING_TOOLS,
    "edit": Edit,
    "create": Create,
    "delete": Delete,
    "set_levers": SetLevers,
    "run": Run,
    "check": Check,
    "test": Test,
    "finish": Finish,
    "give_up": GiveUp,
}
