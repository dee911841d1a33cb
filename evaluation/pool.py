"""Several places to measure, used as one: on each, one call at a time, so never two tenants."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from .audits import Audit
from .errors import WorkerLostError
from .evaluator import Evaluator
from .gates import DocumentScore
from .pairs import Pair, Stage
from .plans import Plan
from .profiling import Profile
from .prompts import Split
from .protocol import KernelCase

_T = TypeVar("_T")
_MAX_LOST = 20  # places lost in a row within one call: then it is the call that kills them
_PATIENCE_S = 30.0  # with no place left at all
_ASK_AGAIN_S = 1.0


@dataclass(eq=False)
class _Place:
    evaluator: Evaluator
    variant: str = ""  # what it measured last, which may still be warm there
    released: "OrderedDict[str, None]" = field(default_factory=OrderedDict)


class Pool:
    """Places to measure, shared by threads. Satisfies `Evaluator`.

    A call waits for a free place, and prefers the one where its variant ran last. A place that is
    lost is made ready again while others go on. What was lost with it is tried again where that
    can't be seen (`smoke`, `profile`, `test_kernels`); a lost measurement raises `WorkerLostError`,
    and whoever writes measurements down asks for what is missing.

    Args:
        evaluators: one for each place; none is called by two threads at once.
    """

    def __init__(self, evaluators: Sequence[Evaluator]) -> None:
        self._places = [_Place(evaluator) for evaluator in evaluators]
        self._idle = list(self._places)
        self._lost: set[_Place] = set()
        self._closed = threading.Event()
        self._changed = threading.Condition()

    def __len__(self) -> int:
        return len(self._places)

    def prepare(self) -> None:
        """Make every place ready; the first alone, because others may find what it leaves."""
        first, *rest = (place.evaluator for place in self._places)
        first.prepare()
        if rest:
            with ThreadPoolExecutor(len(rest)) as threads:
                list(threads.map(lambda evaluator: evaluator.prepare(), rest))

    def expect(self, plan: Plan) -> None:
        """Nothing: what is asked is measured at once."""

    def smoke(self, variant: str) -> str:
        """Run `variant` on a tiny input; raises `EngineError` if it doesn't work."""
        return self._persist(variant, lambda evaluator: evaluator.smoke(variant))

    def pairs(
        self, variant: str, rival: str, stage: Stage, attempts: Mapping[int, int]
    ) -> Generator[Pair, None, None]:
        """Measure pairs of a stage, one at a time, all at one place."""
        with self._place(variant) as evaluator:
            yield from evaluator.pairs(variant, rival, stage, attempts)

    def scores(
        self, variant: str, split: Split, done: Collection[str]
    ) -> Generator[DocumentScore, None, None]:
        """Score the documents of a split that are not `done`, one at a time."""
        with self._place(variant) as evaluator:
            yield from evaluator.scores(variant, split, done)

    def audits(
        self, variant: str, pairs: Sequence[Pair], count: int, done: Collection[tuple[int, int]]
    ) -> Generator[Audit, None, None]:
        """Audit `count` timed blocks of a stage's pairs."""
        with self._place(variant) as evaluator:
            yield from evaluator.audits(variant, pairs, count, done)

    def profile(self, variant: str, bandwidth_gbps: float) -> Profile:
        """Take a decoded token of `variant` apart."""
        return self._persist(variant, lambda one: one.profile(variant, bandwidth_gbps))

    def test_kernels(self, variant: str, kernels: Sequence[str]) -> Sequence[KernelCase]:
        """Compare kernels of `variant`, or all, with plain arithmetic."""
        return self._persist(variant, lambda one: one.test_kernels(variant, kernels))

    def release(self, variant: str) -> None:
        """Free what `variant` holds: at once where nothing runs, elsewhere when that has ended."""
        with self._changed:
            for place in self._places:
                place.released[variant] = None
        for place in self._take_idle():
            self._give_back(place)

    def close(self) -> None:
        """Free everything."""
        self._closed.set()
        for place in self._places:
            place.evaluator.close()

    @contextmanager
    def _place(self, variant: str) -> Iterator[Evaluator]:
        with self._changed:
            while not self._changed.wait_for(lambda: self._idle, _PATIENCE_S):
                if len(self._lost) == len(self._places):
                    raise WorkerLostError(f"no place to measure for {_PATIENCE_S:.0f} s: all lost")
            warm = [place for place in self._idle if place.variant == variant]
            place = (warm or self._idle)[0]
            self._idle.remove(place)
        place.variant = variant
        lost = False
        try:
            yield place.evaluator
        except WorkerLostError:
            lost = True
            self._lost.add(place)
            threading.Thread(target=self._revive, args=[place], daemon=True).start()
            raise
        finally:
            if not lost:
                self._give_back(place)

    def _revive(self, place: _Place) -> None:
        """Make a lost place ready, however long that takes."""
        while not self._closed.is_set():
            try:
                place.evaluator.prepare()
            except Exception:  # whatever is wrong there: a place is never given up
                self._closed.wait(_ASK_AGAIN_S)
                continue
            if self._closed.is_set():
                place.evaluator.close()
                return
            place.released.clear()
            self._lost.discard(place)
            self._give_back(place)
            return

    def _take_idle(self) -> list[_Place]:
        with self._changed:
            taken, self._idle = self._idle, []
            return taken

    def _give_back(self, place: _Place) -> None:
        while True:
            with self._changed:
                if not place.released:
                    self._idle.append(place)
                    self._changed.notify()
                    return
                variant, _ = place.released.popitem(last=False)
            place.evaluator.release(variant)

    def _persist(self, variant: str, work: Callable[[Evaluator], _T]) -> _T:
        for _ in range(_MAX_LOST):
            try:
                with self._place(variant) as evaluator:
                    return work(evaluator)
            except WorkerLostError as error:
                lost = error
        raise lost
