"""The evaluator's door to the tape: what engines did that memory doesn't hold.

Measurements are in memory, by the experiment that they belong to. What is not there is how an
engine failed: `Witness` notes that while a run goes on, and `StandIn` fails the same way when the
run is replayed and nothing is measured at all.
"""

from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from typing import TypeVar

from slipstream.evaluation.audits import Audit
from slipstream.evaluation.errors import (
    ENGINE_ERRORS,
    EngineError,
    OutOfMoneyError,
    OutOfTimeError,
    SlipstreamError,
    UnreachedError,
)
from slipstream.evaluation.evaluator import Evaluator
from slipstream.evaluation.gates import DocumentScore
from slipstream.evaluation.pairs import Pair, Stage
from slipstream.evaluation.plans import Plan
from slipstream.evaluation.profiling import Profile
from slipstream.evaluation.prompts import Split
from slipstream.evaluation.protocol import KernelCase
from slipstream.memory.cassette import Cassette

_T = TypeVar("_T")
UNMEASURED = "unmeasured"  # what ended an experiment's measuring, if not the engine
_ENDINGS: dict[str, type[Exception]] = {
    kind.__name__: kind for kind in (OutOfTimeError, OutOfMoneyError, UnreachedError)
}


class Witness:
    """An evaluator whose engines' failures are noted. Satisfies `Evaluator`."""

    def __init__(self, inner: Evaluator, tape: Cassette) -> None:
        self._inner, self._tape = inner, tape

    def prepare(self) -> None:
        """Make ready what no experiment should pay for."""
        self._inner.prepare()

    def expect(self, plan: Plan) -> None:
        """Learn what will be asked about a variant."""
        self._inner.expect(plan)

    def smoke(self, variant: str) -> str:
        """Run `variant` on a tiny input; raises `EngineError` if it doesn't work."""
        untried = self._noting(variant, "smoke", lambda: self._inner.smoke(variant))
        self._tape.note(f"smoke {variant}", None)
        return untried

    def pairs(
        self, variant: str, rival: str, stage: Stage, attempts: Mapping[int, int]
    ) -> Generator[Pair, None, None]:
        """Measure pairs of a stage, one at a time."""
        yield from self._each(variant, self._inner.pairs(variant, rival, stage, attempts))

    def scores(
        self, variant: str, split: Split, done: Collection[str]
    ) -> Generator[DocumentScore, None, None]:
        """Score the documents of a split that are not `done`, one at a time."""
        yield from self._each(variant, self._inner.scores(variant, split, done))

    def audits(
        self, variant: str, pairs: Sequence[Pair], count: int, done: Collection[tuple[int, int]]
    ) -> Generator[Audit, None, None]:
        """Audit `count` timed blocks of a stage's pairs."""
        yield from self._each(variant, self._inner.audits(variant, pairs, count, done))

    def profile(self, variant: str, bandwidth_gbps: float) -> Profile:
        """Take a decoded token of `variant` apart."""
        return self._inner.profile(variant, bandwidth_gbps)

    def test_kernels(self, variant: str, kernels: Sequence[str]) -> Sequence[KernelCase]:
        """Compare kernels of `variant` with plain arithmetic."""
        return self._inner.test_kernels(variant, kernels)

    def release(self, variant: str) -> None:
        """Free what `variant` holds."""
        self._inner.release(variant)

    def close(self) -> None:
        """Free everything."""
        self._inner.close()

    def _each(self, variant: str, found: Generator[_T, None, None]) -> Generator[_T, None, None]:
        try:
            yield from found
        except EngineError as error:
            self._note(variant, "measure", error)
            raise

    def _noting(self, variant: str, what: str, work: Callable[[], _T]) -> _T:
        try:
            return work()
        except EngineError as error:
            self._note(variant, what, error)
            raise

    def _note(self, variant: str, what: str, error: EngineError) -> None:
        told = {"kind": type(error).__name__, "reason": str(error), "log": error.log}
        self._tape.note(f"{what} {variant}", told)


class StandIn:
    """Knows what a `Witness` saw, and measures nothing. Satisfies `Evaluator`."""

    def __init__(self, tape: Cassette) -> None:
        self._tape = tape

    def prepare(self) -> None:
        """Nothing to make."""

    def expect(self, plan: Plan) -> None:
        """Nothing is measured."""

    def smoke(self, variant: str) -> str:
        """Fail as the engine did then, if it did."""
        self._raise(f"smoke {variant}")
        return ""

    def pairs(
        self,
        variant: str,
        rival: str,  # noqa: ARG002
        stage: Stage,  # noqa: ARG002
        attempts: Mapping[int, int],  # noqa: ARG002
    ) -> Generator[Pair, None, None]:
        """Fail as the engine did then: what was measured is in memory, and isn't asked for."""
        yield from self._end(variant)

    def scores(
        self,
        variant: str,
        split: Split,  # noqa: ARG002
        done: Collection[str],  # noqa: ARG002
    ) -> Generator[DocumentScore, None, None]:
        """Fail as the engine did then."""
        yield from self._end(variant)

    def audits(
        self,
        variant: str,
        pairs: Sequence[Pair],  # noqa: ARG002
        count: int,  # noqa: ARG002
        done: Collection[tuple[int, int]],  # noqa: ARG002
    ) -> Generator[Audit, None, None]:
        """Fail as the engine did then."""
        yield from self._end(variant)

    def profile(self, variant: str, bandwidth_gbps: float) -> Profile:  # noqa: ARG002
        """Fail: whoever took one has it on tape."""
        raise SlipstreamError(f"replay: the recording has no profile of {variant}")

    def test_kernels(self, variant: str, kernels: Sequence[str]) -> Sequence[KernelCase]:  # noqa: ARG002
        """Fail, likewise."""
        raise SlipstreamError(f"replay: the recording has no kernels' tests of {variant}")

    def release(self, variant: str) -> None:
        """Nothing is held."""

    def close(self) -> None:
        """Nothing is held."""

    def _end(self, variant: str) -> Generator[_T, None, None]:
        if told := self._tape.noted(f"{UNMEASURED} {variant}"):
            raise _ENDINGS[told["kind"]](told["reason"])
        self._raise(f"measure {variant}")
        raise SlipstreamError(
            f"replay: the recording ends while {variant} is measured; there it was interrupted"
        )
        yield  # a generator, as what it stands in for

    def _raise(self, name: str) -> None:
        if told := self._tape.noted(name):
            raise ENGINE_ERRORS[told["kind"]](told["reason"], told["log"])
