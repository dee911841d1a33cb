"""This machine as the rung before a rented one: the same engines, a few pairs, no quality."""

import threading
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from tempfile import TemporaryDirectory

from slipstream.evaluation.bench import Bench, open_bench
from slipstream.evaluation.challenge import Challenge, Quality
from slipstream.evaluation.errors import EngineError, SlipstreamError
from slipstream.evaluation.evaluator import Evaluator
from slipstream.evaluation.hardware import bandwidth_of, detect_hardware
from slipstream.evaluation.pairs import Pair, Stage
from slipstream.kernels.variants import VariantStore


class Here:
    """Races variants on this machine. Satisfies `Rehearsing`; threads may share it.

    The model is fetched and the first engine started when it is first asked; a machine that turns
    out not to be able to says why, and is not asked again.
    """

    def __init__(
        self,
        challenge: Challenge,
        store: VariantStore,
        stack: ExitStack,
        seed: int,
        *,
        unsafe_local: bool,
        say: Callable[[str], None],
        check_stop: Callable[[], None],
    ) -> None:
        self._challenge = challenge.model_copy(update={"quality": Quality(enabled=False)})
        self._store, self._stack, self._seed = store, stack, seed
        self._unsafe_local, self._say, self._check_stop = unsafe_local, say, check_stop
        self._bench: Bench | None = None
        self._bandwidth = 0.0
        self._lock = threading.Lock()
        self.problem = _problem(challenge)

    @property
    def bandwidth_gbps(self) -> float:
        """How fast this machine's device reads; measured once."""
        with self._lock:
            self._bandwidth = self._bandwidth or bandwidth_of(self._challenge.device)
            return self._bandwidth

    def race(self, variant: str, rival: str, stage: Stage, count: int) -> list[Pair]:
        """Return `count` pairs of a stage; none, and `problem` says why, if it can't be done here.

        Raises:
            EngineError: one of them doesn't work here.
            StopRequested: Ctrl-C, between two pairs.
        """
        with self._lock:
            if self.problem:
                return []
            try:
                if self._bench is None:
                    self._bench = self._opened()
                evaluator = self._bench.evaluator
                counting: dict[int, Pair] = {}
                try:
                    self._add_pairs(counting, evaluator, variant, rival, stage, count)
                except EngineError:  # as on the machine that counts: a second failure is its own
                    evaluator.release(variant)
                    evaluator.release(rival)
                    self._add_pairs(counting, evaluator, variant, rival, stage, count)
                return [counting[index] for index in sorted(counting)]
            except SlipstreamError as error:  # no room, no model: the next one fares no better
                self.problem = str(error)
                return []

    def _add_pairs(
        self,
        counting: dict[int, Pair],
        evaluator: Evaluator,
        variant: str,
        rival: str,
        stage: Stage,
        count: int,
    ) -> None:
        """Measure the pairs that `counting` lacks."""
        attempts = {index: 0 for index in range(count) if index not in counting}
        with closing(evaluator.pairs(variant, rival, stage, attempts)) as pairs:
            for pair in pairs:
                if not pair.void:
                    counting[pair.index] = pair
                self._check_stop()

    def release(self, variant: str) -> None:
        """Free what a variant holds."""
        with self._lock:
            if self._bench is not None:
                self._bench.evaluator.release(variant)

    def _opened(self) -> Bench:
        folder = Path(self._stack.enter_context(TemporaryDirectory()))
        opened = open_bench(
            self._challenge,
            self._store.path,
            folder,
            seed=self._seed,
            unsafe_local=self._unsafe_local,
            say=self._say,
        )
        return self._stack.enter_context(opened)


def _problem(challenge: Challenge) -> str:
    """Return why this machine can't measure a challenge at all; empty if it may."""
    if not challenge.jobs.screen_here:
        return "the challenge's [jobs] say screen_here = false"
    if challenge.device == "cuda" and not detect_hardware().gpus:
        return "no GPU here"
    return ""
