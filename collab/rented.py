"""Measuring on a rented machine: one job of the Hub for each experiment.

The loop asks for pairs, scores and audits as it does anywhere. Here the first such question about a
variant submits its whole experiment as an errand (`evaluation/plans.py`); the answers to all of
them come from the log of that one job, line by line. What was told is written down by whoever
asked, so a process that is killed and started again finds its job by the row in memory, reads the
log from the beginning, and skips what it has.
"""

import functools
import threading
import time
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

from slipstream.evaluation.audits import Audit
from slipstream.evaluation.challenge import Challenge
from slipstream.evaluation.errors import (
    ENGINE_ERRORS,
    EngineFailedError,
    SlipstreamError,
    WorkerLostError,
)
from slipstream.evaluation.gates import DocumentScore
from slipstream.evaluation.pairs import Pair, Stage
from slipstream.evaluation.plans import (
    AuditLine,
    BeginLine,
    EndLine,
    FailureLine,
    Line,
    PairLine,
    Plan,
    ScoreLine,
    read_line,
    with_line,
)
from slipstream.evaluation.profiling import Profile
from slipstream.evaluation.prompts import Split
from slipstream.evaluation.protocol import KernelCase
from slipstream.kernels.variants import Tree
from slipstream.memory.database import Database
from slipstream.memory.jobs import CANCELLED, DONE, FAILED, Job

from .dispatch import Dispatch, Terms
from .flavors import Flavor
from .hub import Hub

ASK_EVERY_S = 10.0
PATIENCE_S = 600.0  # with a Hub that doesn't answer


@dataclass(eq=False)
class _Errand:
    """A plan, its job once there is one, and what was told so far.

    Attributes:
        ended: nothing more will be told.
        gone: its machine has ended too.
    """

    plan: Plan
    job: Job | None = None
    lines: list[Line] = field(default_factory=list)
    ended: bool = False
    gone: bool = False
    asked_at: float = 0.0
    heard_at: float = field(default_factory=time.monotonic)
    lock: threading.RLock = field(default_factory=threading.RLock)


class RentedEvaluator:
    """Jobs as places to measure; threads may share it. Satisfies `Evaluator`.

    Args:
        read: returns the tree of a variant.
        check_stop: raises when somebody wants the run to stop.
        try_here: runs a variant on a tiny input, and returns why it didn't, if it didn't.
    """

    def __init__(
        self,
        hub: Hub,
        flavor: Flavor,
        challenge: Challenge,
        database: Database,
        read: Callable[[str], Tree],
        terms: Terms,
        *,
        say: Callable[[str], None] = lambda _: None,
        check_stop: Callable[[], None] = lambda: None,
        try_here: Callable[[str], str] = lambda _: "nothing here can run it",
    ) -> None:
        self._hub, self._flavor, self._terms = hub, flavor, terms
        self._dispatch = Dispatch(hub, flavor, challenge, database, read, terms, say)
        self._say, self._check_stop, self._try_here = say, check_stop, try_here
        self._errands: dict[str, _Errand] = {}
        self._begun: list[_Errand] = []

    def prepare(self) -> None:
        """Nothing to make here: a job makes its documents when it begins."""

    def expect(self, plan: Plan) -> None:
        """Learn what will be asked about a variant; nothing is submitted before it is asked."""
        known = self._errands.get(plan.variant)
        if known is None or known.plan.experiment != plan.experiment or known.job is None:
            self._errands[plan.variant] = _Errand(plan)

    def smoke(self, variant: str) -> str:
        """Run `variant` on a tiny input here, on a random model of the same family."""
        return self._try_here(variant)

    def pairs(
        self,
        variant: str,
        rival: str,  # noqa: ARG002  (the errand has it)
        stage: Stage,
        attempts: Mapping[int, int],
    ) -> Generator[Pair, None, None]:
        """Yield pairs of a stage as the job tells them."""
        if stage is Stage.LOOK:
            raise self._nobody_looks(variant)
        missing = set(attempts)
        for line in self._told(variant):
            if isinstance(line, PairLine) and line.value.stage is stage:
                pair = line.value
                if pair.index in missing and pair.attempt >= attempts[pair.index]:
                    missing -= {pair.index} if not pair.void else set()
                    yield pair
                    if not missing:
                        return

    def scores(
        self, variant: str, split: Split, done: Collection[str]
    ) -> Generator[DocumentScore, None, None]:
        """Yield scores as the job tells them."""
        seen = set(done)
        for line in self._told(variant):
            if isinstance(line, ScoreLine) and line.split is split:
                if line.value.document not in seen:
                    seen.add(line.value.document)
                    yield line.value
                if len(seen) >= self._errands[variant].plan.num_documents:
                    return

    def audits(
        self, variant: str, pairs: Sequence[Pair], count: int, done: Collection[tuple[int, int]]
    ) -> Generator[Audit, None, None]:
        """Yield audits as the job tells them."""
        seen = set(done)
        for line in self._told(variant):
            if isinstance(line, AuditLine) and line.value.stage is pairs[0].stage:
                place = (line.value.index, line.value.block)
                if place not in seen:
                    seen.add(place)
                    yield line.value
                if len(seen) >= count:
                    return

    def profile(self, variant: str, bandwidth_gbps: float) -> Profile:  # noqa: ARG002
        """Fail: a machine is not rented for a look."""
        raise self._nobody_looks(variant)

    def test_kernels(self, variant: str, kernels: Sequence[str]) -> Sequence[KernelCase]:  # noqa: ARG002
        """Fail, likewise."""
        raise self._nobody_looks(variant)

    def _nobody_looks(self, variant: str) -> EngineFailedError:
        where = self._flavor.name
        return EngineFailedError(f"{variant} is measured on {where}, where nobody looks")

    def release(self, variant: str) -> None:
        """Nothing is held."""

    def close(self) -> None:
        """Cancel what still runs: whoever ends in an orderly way leaves no machine running."""
        self._settle(tries=3)
        for errand in self._begun:
            if errand.job is None or errand.gone:
                continue
            if not errand.ended:
                self._say(f"cancelling job {errand.job.remote}")
            try:
                self._hub.cancel(errand.job.remote)
                running_s = self._hub.state(errand.job.remote).running_s
                if errand.ended:  # it had told everything, and only its machine didn't end
                    self._end(errand, errand.job.state, errand.job.reason, running_s)
                else:
                    self._end(errand, CANCELLED, "slipstream ended", running_s)
            except SlipstreamError as error:
                self._say(f"{error}; it ends by itself after {self._terms.timeout_s} s")

    def _settle(self, tries: int = 1) -> None:
        """See whether jobs have ended that were asked for nothing more since their last result."""
        for number in range(tries):
            running = [errand for errand in self._begun if not errand.gone]
            if running and number:
                time.sleep(1.0)
            for errand in running:
                if errand.lock.acquire(blocking=False):  # or somebody is looking just now
                    with suppress(SlipstreamError):
                        self._look(errand)
                    errand.lock.release()

    def _told(self, variant: str) -> Iterator[Line]:
        """Yield the results of a variant's job, waiting for those that are yet to come.

        Raises:
            EngineError: the engine failed there.
            WorkerLostError: the job ended before it had told everything.
            SlipstreamError: the job could not do its work at all.
        """
        errand = self._errands.get(variant)
        if errand is None:
            raise EngineFailedError(f"{variant}: no errand to {self._flavor.name} is planned")
        position = 0
        while True:
            while position < len(errand.lines):
                line = errand.lines[position]
                position += 1
                if isinstance(line, FailureLine):
                    if line.error not in ENGINE_ERRORS:
                        raise SlipstreamError(f"job {_remote(errand)}: {line.reason}")
                    raise ENGINE_ERRORS[line.error](line.reason, line.log)
                if isinstance(line, BeginLine):
                    self._check_machine(errand, line.machine)
                elif not isinstance(line, EndLine):
                    yield line
            if errand.ended:
                known = functools.reduce(with_line, errand.lines, errand.plan.evidence)
                self._errands[variant] = _Errand(replace(errand.plan, evidence=known))
                reason = errand.job.reason if errand.job else ""
                raise WorkerLostError(
                    f"job {_remote(errand)} ended and had not told everything ({reason})"
                )
            self._ask(errand)

    def _check_machine(self, errand: _Errand, machine: str) -> None:
        """Refuse speeds of another GPU than those that they would be compared with."""
        if self._flavor.gpu not in machine:
            raise SlipstreamError(
                f"job {_remote(errand)} runs on {machine}; {self._flavor.name} has "
                f"{self._flavor.gpu}, and speeds of both can't go into one run: see "
                f"{self._hub.page}, and correct collab/flavors.toml if the Hub changed it"
            )

    def _ask(self, errand: _Errand) -> None:
        """See what is new; the job is submitted if there is none."""
        if errand.job is None:
            self._settle()  # what has ended costs less than what was committed for it
            found = self._dispatch.find(errand.plan)
            errand.job = found or self._dispatch.submit(errand.plan)
            self._begun.append(errand)
        while (wait_s := errand.asked_at + ASK_EVERY_S - time.monotonic()) > 0:
            self._check_stop()
            time.sleep(min(wait_s, 0.2))
        with errand.lock:
            try:
                self._look(errand)
            except SlipstreamError as error:  # a Hub that is away for a while cancels no job
                if time.monotonic() - errand.heard_at > PATIENCE_S:
                    raise
                self._say(f"{error}; job {_remote(errand)} is asked again")
            else:
                errand.heard_at = time.monotonic()

    def _look(self, errand: _Errand) -> None:
        """Read what a job has told by now, and write down if it has ended."""
        if errand.job is None:
            return
        errand.asked_at = time.monotonic()
        state = self._hub.state(errand.job.remote)  # before the log: nothing comes after its end
        found, said = [], ""
        for text in self._hub.log(errand.job.remote):
            line = read_line(text)
            if line is not None:
                found.append(line)
            elif text.strip():
                said = text.strip()
        if len(found) > len(errand.lines):
            self._say(f"job {errand.job.remote}: {len(found)} results")
        errand.lines += found[len(errand.lines) :]
        errand.gone = state.ended
        if state.ended or (found and isinstance(found[-1], EndLine | FailureLine)):
            whole, said = _whole(found), state.message or said
            reason = ": ".join(word for word in (state.stage, said) if word)
            self._end(errand, DONE if whole else FAILED, reason, state.running_s)

    def _end(
        self, errand: _Errand, state: str, reason: str, running_s: float | None = None
    ) -> None:
        """Write down how a job ended."""
        errand.ended = True
        if errand.job is not None:
            errand.job = self._dispatch.end(errand.job, state, reason, running_s)


def _whole(lines: Sequence[Line]) -> bool:
    """Return whether a job told everything, and nothing of it was lost on the way."""
    results = sum(isinstance(line, PairLine | ScoreLine | AuditLine) for line in lines)
    return any(isinstance(line, EndLine) and line.count == results for line in lines[-1:])


def _remote(errand: _Errand) -> str:
    return errand.job.remote if errand.job is not None else "?"
