"""A place to measure in another process: what runs there, and how it is asked.

A `Station` is the far side: it opens a bench of its own and does what it is asked, one thing at a
time. A `FarEvaluator` is the near side, an `Evaluator` like the local one. What lies between is a
`Line`: a pipe (`processes.py`), a Ray cluster (`cluster.py`). Both sides are slipstream's own; an
engine never sees a line.
"""

import tempfile
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from slipstream.kernels.census import ModelShape
from slipstream.kernels.variants import Tree, VariantStore

from . import secret
from .audits import Audit
from .baselines import is_baseline
from .bench import Bench, open_bench
from .challenge import Challenge
from .errors import ENGINE_ERRORS, EngineError, SlipstreamError, WorkerLostError
from .evaluator import Evaluator
from .gates import DocumentScore
from .hardware import bandwidth_of
from .pairs import Pair, Stage
from .plans import Plan
from .profiling import Profile
from .prompts import Split
from .protocol import KernelCase
from .site import Site, look_around


@dataclass(frozen=True)
class Assignment:
    """What a station needs to know in order to open.

    Attributes:
        challenge: the challenge's fields.
        seed: of everything that is drawn; secret until the run is over.
        secret: what held-out ground truth is drawn from, so that all places draw the same.
        salt: another one draws other held-out documents.
    """

    challenge: dict[str, Any]
    seed: int
    secret: str
    salt: str = ""
    unsafe_local: bool = False


@dataclass(frozen=True)
class Answer:
    """What a station answers: a value, the end of a series, or an error.

    Attributes:
        error: the kind of an engine's error, "SlipstreamError", or empty.
    """

    value: Any = None
    ended: bool = False
    error: str = ""
    reason: str = ""
    log: str = ""


# Opens a station's evaluator, which finds the trees that it is sent in the store.
Make = Callable[[Assignment, VariantStore], Evaluator]


class Station:
    """The far side: opens a bench when it is first asked, and answers.

    Args:
        make: opens the evaluator; by default a bench for the challenge on this machine.
    """

    def __init__(self, assignment: Assignment, make: Make | None = None) -> None:
        self._assignment, self._make = assignment, make
        self._stack = ExitStack()
        self._store: VariantStore | None = None
        self._bench: Bench | None = None
        self._evaluator: Evaluator | None = None
        self._series: Generator[Any, None, None] | None = None

    def ask(self, method: str, *arguments: Any) -> Answer:
        """Do one thing; engines' errors, and the user's, become answers."""
        try:
            return self._do(method, *arguments)
        except EngineError as error:
            return Answer(error=type(error).__name__, reason=str(error), log=error.log)
        except SlipstreamError as error:
            return Answer(error="SlipstreamError", reason=str(error))

    def close(self) -> None:
        """Free everything."""
        self._stack.close()

    def _do(self, method: str, *arguments: Any) -> Answer:
        match method:
            case "site":
                return Answer(look_around(self._assignment.challenge["device"]))
            case "bandwidth":
                return Answer(bandwidth_of(self._assignment.challenge["device"]))
            case "bench":
                self._opened()
                bench = self._bench
                return Answer(None if bench is None else (bench.shape, bench.num_documents))
            case "add":
                self._opened()
                if self._store is not None:
                    self._store.add(Tree(arguments[0]))
                return Answer()
            case "pairs" | "scores" | "audits":
                self._end()
                self._series = getattr(self._opened(), method)(*arguments)
                return Answer()
            case "next":
                value = next(self._series, None) if self._series is not None else None
                return Answer(value, ended=value is None)
            case "end":
                self._end()
                return Answer()
            case _:
                return Answer(getattr(self._opened(), method)(*arguments))

    def _end(self) -> None:
        if self._series is not None:
            self._series.close()
            self._series = None

    def _opened(self) -> Evaluator:
        if self._evaluator is not None:
            return self._evaluator
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
        self._store = VariantStore(folder / "variants")
        if self._make is not None:
            self._evaluator = self._make(self._assignment, self._store)
            self._stack.callback(self._evaluator.close)
        else:
            given = self._assignment
            secret.use(given.secret)
            self._bench = self._stack.enter_context(
                open_bench(
                    Challenge.model_validate(given.challenge),
                    self._store.path,
                    folder,
                    seed=given.seed,
                    salt=given.salt,
                    unsafe_local=given.unsafe_local,
                )
            )
            self._evaluator = self._bench.evaluator
        return self._evaluator


class Line(Protocol):
    """What connects both sides."""

    def ask(self, method: str, *arguments: Any) -> Answer:
        """Put one question to the station.

        Raises:
            WorkerLostError: it is gone.
        """
        ...

    def close(self) -> None:
        """Hang up: the station ends, and all that it started."""
        ...


class FarEvaluator:
    """The near side of a station. Satisfies `Evaluator`.

    A lost station is replaced when something is asked next.

    Args:
        connect: starts a station and returns the line to it.
        read: returns the tree of a variant, which the station gets when it first needs it.
    """

    def __init__(self, connect: Callable[[], Line], read: Callable[[str], Tree]) -> None:
        self._connect, self._read = connect, read
        self._line: Line | None = None
        self._sent: set[str] = set()

    def site(self) -> Site:
        """Return what machine the station is on."""
        found: Site = self._ask("site")
        return found

    def bandwidth(self) -> float:
        """Return how fast its device reads, in GB/s; measured now."""
        return float(self._ask("bandwidth"))

    def bench(self) -> tuple[ModelShape, int]:
        """Return the model's shape, and the number of scored documents per split."""
        found: tuple[ModelShape, int] = self._ask("bench")
        return found

    def prepare(self) -> None:
        """Make ready what no experiment should pay for."""
        self._ask("prepare")

    def expect(self, plan: Plan) -> None:
        """Nothing: what is asked is measured at once."""

    def smoke(self, variant: str) -> str:
        """Run `variant` on a tiny input; raises `EngineError` if it doesn't work."""
        self._send(variant)
        return str(self._ask("smoke", variant))

    def pairs(
        self, variant: str, rival: str, stage: Stage, attempts: Mapping[int, int]
    ) -> Generator[Pair, None, None]:
        """Measure pairs of a stage, one at a time."""
        self._send(variant, rival)
        yield from self._each("pairs", variant, rival, stage, dict(attempts))

    def scores(
        self, variant: str, split: Split, done: Collection[str]
    ) -> Generator[DocumentScore, None, None]:
        """Score the documents of a split that are not `done`, one at a time."""
        self._send(variant)
        yield from self._each("scores", variant, split, set(done))

    def audits(
        self, variant: str, pairs: Sequence[Pair], count: int, done: Collection[tuple[int, int]]
    ) -> Generator[Audit, None, None]:
        """Audit `count` timed blocks of a stage's pairs."""
        self._send(variant)
        yield from self._each("audits", variant, list(pairs), count, set(done))

    def profile(self, variant: str, bandwidth_gbps: float) -> Profile:
        """Take a decoded token of `variant` apart."""
        self._send(variant)
        found: Profile = self._ask("profile", variant, bandwidth_gbps)
        return found

    def test_kernels(self, variant: str, kernels: Sequence[str]) -> Sequence[KernelCase]:
        """Compare kernels of `variant`, or all, with plain arithmetic."""
        self._send(variant)
        found: Sequence[KernelCase] = self._ask("test_kernels", variant, tuple(kernels))
        return found

    def release(self, variant: str) -> None:
        """Free what `variant` holds; a station that is gone holds nothing."""
        if self._line is not None:
            try:
                self._ask("release", variant)
            except WorkerLostError:
                return

    def close(self) -> None:
        """Hang up."""
        line, self._line = self._line, None
        self._sent.clear()
        if line is not None:
            line.close()

    def _each(self, method: str, *arguments: Any) -> Generator[Any, None, None]:
        self._ask(method, *arguments)
        try:
            while not (answer := self._answer("next")).ended:
                yield answer.value
        finally:
            if self._line is not None:  # whoever stops in the middle frees the station
                with suppress(WorkerLostError):
                    self._ask("end")

    def _send(self, *variants: str) -> None:
        for name in variants:
            if name not in self._sent and not is_baseline(name):
                self._ask("add", dict(self._read(name).files))
                self._sent.add(name)

    def _ask(self, method: str, *arguments: Any) -> Any:
        return self._answer(method, *arguments).value

    def _answer(self, method: str, *arguments: Any) -> Answer:
        if self._line is None:
            self._line = self._connect()
        try:
            answer = self._line.ask(method, *arguments)
        except WorkerLostError:
            self.close()
            raise
        if answer.error == "SlipstreamError":
            raise SlipstreamError(answer.reason)
        if answer.error:
            raise ENGINE_ERRORS[answer.error](answer.reason, answer.log)
        return answer
