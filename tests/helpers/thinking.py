"""A scripted model that plays all three roles behind a real wire."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from model_server import Call, Reply, Request, Say

Steps = Sequence[Call]
EDIT_PLAN: dict[str, Any] = {
    "kind": "edit",
    "mechanism": "the norm's weight is read once more than it has to be, for every row",
    "arithmetic": "0.1 MB of 200 MB a token, at 28 GB/s: 4 of 7000 microseconds",
    "predicted_gain": 0.05,
    "risk": "rounding",
    "falsifier": "the norms' share of the profile stays as it was",
}


def lever_idea(gain: float = 0.1, **levers: str) -> dict[str, Any]:
    """Return an idea that sets levers."""
    return EDIT_PLAN | {"kind": "levers", "levers": levers, "predicted_gain": gain}


def edit_idea(*files: str, gain: float = 0.05, **changes: Any) -> dict[str, Any]:
    """Return an idea that edits source."""
    return EDIT_PLAN | {"files": list(files), "predicted_gain": gain} | changes


def comment(number: int, path: str = "engine/norm.py") -> list[Call]:
    """Return what a coder does who writes a comment, tries it, and hands it in."""
    old = '"""Root-mean-square norm'
    return [
        Call("read_file", {"path": path}),
        Call("edit", {"path": path, "old": old, "new": f"# edit {number}\n{old}"}),
        Call("run", {}),
        Call("finish", {"summary": f"edit {number}"}),
    ]


class Script:
    """Answers by role: a planner's ideas in order, a coder's steps, a benchmarker's words.

    Args:
        ideas: one list a plan; afterwards levers that change nothing are proposed.
        work: a coder's steps, one list a hypothesis.
        disturb: replaces an answer now and then, by the number of the request.
    """

    def __init__(
        self,
        ideas: Sequence[Sequence[dict[str, Any]]] = (),
        work: Sequence[Steps] = (),
        disturb: Callable[[int], Reply | None] = lambda _: None,
        looks: Sequence[dict[str, Any]] = (),
    ) -> None:
        self._ideas, self._work = iter(ideas), list(work)
        self._disturb, self._looks = disturb, looks
        self._count = itertools.count(1)
        self._jobs: dict[str, Iterator[Call]] = {}

    def __call__(self, request: Request) -> Reply:
        instead = self._disturb(next(self._count))
        if instead is not None:
            return instead
        if "propose" in request.tools:
            return self._plan()
        if "finish" in request.tools:
            return Say(calls=(self._step(request),))
        if "look" in request.tools:
            return Say(calls=(Call("look", {"looks": list(self._looks)}),))
        lines = [line for message in request.messages for line in message.text.splitlines()]
        figure = next(line for line in lines if line.startswith("predicted: ")).split()[-1]
        words = f"Expected {figure} and measured something else, as the figures say. It was noise."
        told = {"mechanism": words, "reopen": "when the engine changes"}
        return Say(calls=(Call("explain", told),))

    def _plan(self) -> Reply:
        ideas = next(self._ideas, None)
        if ideas is None:
            return Say("I have no more ideas.")
        return Say(calls=(Call("propose", {"ideas": list(ideas)}),))

    def _step(self, request: Request) -> Call:
        brief = next(m.text for m in request.messages if m.role == "user")
        if brief not in self._jobs:
            self._jobs[brief] = iter(self._work.pop(0))
        done = Call("give_up", {"reason": "the script has nothing more"})
        return next(self._jobs[brief], done)
