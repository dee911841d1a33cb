"""Measuring on a rented machine: one job of the Hub for each experiment.

The loop asks for pairs, scores and audits as it does anywhere. Here the first such question about a
variant submits its whole experiment as an errand (`evaluation/plans.py`); the answers to all of
them come from the log of that one job, line by line. What was told is written down by whoever
asked, so a process that is killed and started again finds its job by the row in memory, reads the
log from the beginning, and skips what it has.
"""

import functools
import math
import threading
import time
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from slipstream.evaluation.audits import Audit
from slipstream.evaluation.baselines import is_baseline
from slipstream.evaluation.challenge import Challenge
from slipstream.evaluation.errors import (
    EngineFailedError,
    ExposedError,
    InvalidOutputError,
    OutOfMoneyError,
    SlipstreamError,
    WorkerLostError,
)
from slipstream.evaluation.gates import DocumentScore
from slipstream.evaluation.pairs import Pair, Stage
from slipstream.evaluation.plans import (
    AuditLine,
    EndLine,
    FailureLine,
    Line,
    PairLine,
    Plan,
    ScoreLine,
    plan_to_json,
    read_line,
    with_line,
)
from slipstream.evaluation.profiling import Profile
from slipstream.evaluation.prompts import Split
from slipstream.evaluation.protocol import KernelCase
from slipstream.evaluation.secret import secret_text
from slipstream.kernels.variants import Tree
from slipstream.memory.costs import MEASURING, Cost, Costs
from slipstream.memory.database import Database
from slipstream.memory.jobs import CANCELLED, DONE, FAILED, RUNNING, Job, Jobs

from .flavors import Flavor
from .hub import Hub, errand_files, there

ASK_EVERY_S = 10.0
MOST_JOBS = 3  # of one experiment
_ERRORS = {e.__name__: e for e in (EngineFailedError, ExposedError, InvalidOutputError)}


@dataclass(frozen=True)
class Terms:
    """What a run's jobs may take.

    Attributes:
        seed: of everything that is drawn.
        usd: dollars of the whole run; None for no limit.
        timeout_s: of one job.
        per_day: jobs of the account within 24 hours.
    """

    run: str
    seed: int
    unsafe: bool = False
    usd: float | None = None
    timeout_s: int = 1200
    per_day: int = 20


@dataclass
class _Errand:
    """A plan, its job once there is one, and what was told so far."""

    plan: Plan
    job: Job | None = None
    lines: list[Line] = field(default_factory=list)
    ended: bool = False
    asked_at: float = 0.0
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
        self._hub, self._flavor, self._challenge, self._read = hub, flavor, challenge, read
        self._jobs, self._costs, self._terms = Jobs(database), Costs(database), terms
        self._say, self._check_stop, self._try_here = say, check_stop, try_here
        self._usd_per_hour = hub.usd_per_hour(flavor.name) or flavor.usd_per_hour
        self._errands: dict[str, _Errand] = {}
        self._left: list[_Errand] = []
        self._money = threading.Lock()

    def prepare(self) -> None:
        """Nothing to make here: a job makes its documents when it begins."""

    def expect(self, plan: Plan) -> None:
        """Learn what will be asked about a variant; nothing is submitted before it is asked."""
        known = self._errands.get(plan.variant)
        if known is None or known.plan.experiment != plan.experiment or known.job is None:
            if known is not None and known.job is not None and not known.ended:
                self._left.append(known)  # all that was asked of it is told; its end isn't
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
        raise EngineFailedError(f"{variant} is measured on {self._flavor.name}, where nobody looks")

    def test_kernels(self, variant: str, kernels: Sequence[str]) -> Sequence[KernelCase]:  # noqa: ARG002
        """Fail, likewise."""
        raise EngineFailedError(f"{variant} is measured on {self._flavor.name}, where nobody looks")

    def release(self, variant: str) -> None:
        """Nothing is held."""

    def close(self) -> None:
        """Cancel what still runs: whoever ends in an orderly way leaves no machine running."""
        self._settle(tries=3)
        for errand in (*self._left, *self._errands.values()):
            if errand.job is not None and not errand.ended:
                self._say(f"cancelling job {errand.job.remote}")
                try:
                    self._hub.cancel(errand.job.remote)
                    state = self._hub.state(errand.job.remote)
                    self._end(errand, CANCELLED, "slipstream ended", state.running_s)
                except SlipstreamError as error:
                    self._say(f"{error}; it ends by itself after {self._terms.timeout_s} s")

    def _settle(self, tries: int = 1) -> None:
        """See whether jobs have ended that were asked for nothing more since their last result."""
        for number in range(tries):
            every = [*self._left, *self._errands.values()]
            running = [errand for errand in every if errand.job is not None and not errand.ended]
            if running and number:
                time.sleep(1.0)
            for errand in running:
                with suppress(SlipstreamError), errand.lock:
                    self._look(errand)

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
                    if line.error not in _ERRORS:
                        raise SlipstreamError(f"job {_remote(errand)}: {line.reason}")
                    raise _ERRORS[line.error](line.reason, line.log)
                if not isinstance(line, EndLine):
                    yield line
            if errand.ended:
                known = functools.reduce(with_line, errand.lines, errand.plan.evidence)
                self._errands[variant] = _Errand(replace(errand.plan, evidence=known))
                reason = errand.job.reason if errand.job else ""
                raise WorkerLostError(
                    f"job {_remote(errand)} ended and had not told everything ({reason})"
                )
            self._ask(errand)

    def _ask(self, errand: _Errand) -> None:
        """See what is new; the job is submitted if there is none."""
        with errand.lock:
            if errand.job is None:
                errand.job = self._found(errand.plan) or self._submitted(errand.plan)
            while (wait_s := errand.asked_at + ASK_EVERY_S - time.monotonic()) > 0:
                self._check_stop()
                time.sleep(min(wait_s, 0.2))
            self._look(errand)

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
        if state.ended or (found and isinstance(found[-1], EndLine | FailureLine)):
            whole = bool(found) and isinstance(found[-1], EndLine)
            reason = ": ".join(word for word in (state.stage, state.message or said) if word)
            self._end(errand, DONE if whole else FAILED, reason, state.running_s)

    def _found(self, plan: Plan) -> Job | None:
        """Return the job that an earlier session has begun for this experiment, if it did."""
        job = self._jobs.open_one(plan.experiment)
        if job is None:
            return None
        remote = job.remote or self._hub.find(job.id)
        if not remote:  # it was never submitted, or nobody knows: it counts, and another is begun
            self._jobs.change(job.id, state=FAILED, reason="never seen on the Hub")
            return None
        self._say(f"job {remote} of {plan.experiment} goes on")
        self._jobs.change(job.id, remote=remote, state=RUNNING)
        return Job(**{**vars(job), "remote": remote, "state": RUNNING})

    def _submitted(self, plan: Plan) -> Job:
        """Commit what a job can cost at most, then submit it.

        Raises:
            OutOfMoneyError: the run has less left.
            QuotaError: no more jobs today.
        """
        terms, flavor = self._terms, self._flavor
        if (had := self._jobs.count(plan.experiment)) >= MOST_JOBS:
            reason = self._jobs.of_run(terms.run)[-1].reason
            raise SlipstreamError(
                f"{had} jobs of {plan.experiment} ended before they had told everything, the last "
                f"with {reason!r}; their logs are at {self._hub.page}"
            )
        usd = self._usd_per_hour * terms.timeout_s / 3600
        name = f"{plan.experiment}-{had}"
        job = Job(name, terms.run, plan.experiment, self._hub.namespace, flavor.name, usd)
        self._settle()  # what has ended costs less than what was committed for it
        kept = usd if plan.rule is not None else 0.0  # for the champion's verification
        with self._money:
            left = math.inf if terms.usd is None else terms.usd - self._costs.usd(terms.run)
            if usd + kept > left:
                verification = f", ${kept:.2f} more are for the verification" if kept else ""
                raise OutOfMoneyError(
                    f"a job on {flavor.name} may cost ${usd:.2f}{verification}, and of the budget "
                    f"of ${terms.usd:.2f} ${max(0.0, left):.2f} is left"
                )
            self._jobs.reserve(job, terms.per_day)
            model = f"hf-jobs {flavor.name}"
            about = plan.experiment if plan.rule is not None else None
            self._costs.begin(Cost(name, terms.run, about, MEASURING, model, usd=usd))
        try:
            self._hub.upload(name, errand_files(self._errand(plan), self._trees(plan)))
            remote = self._hub.submit(name, flavor.name, terms.timeout_s, self._challenge.model)
        except SlipstreamError as error:
            # An answer that was lost doesn't mean that there is no job. If nobody can tell, the row
            # stays open and its dollars committed: whoever resumes the run looks again.
            if not (remote := self._hub.find(name)):
                self._jobs.change(name, state=FAILED, reason=str(error), usd=0.0)
                self._costs.end(name, outcome="not submitted", usd=0.0)
                raise
        self._jobs.change(name, remote=remote, state=RUNNING)
        self._say(f"job {remote} on {flavor.name} for {plan.experiment}, at most ${usd:.2f}")
        return Job(**{**vars(job), "remote": remote, "state": RUNNING})

    def _errand(self, plan: Plan) -> dict[str, Any]:
        return {
            "challenge": there(self._challenge).model_dump(mode="json"),
            "plan": plan_to_json(plan),
            "seed": self._terms.seed,
            "secret": secret_text(),
            "unsafe": self._terms.unsafe,
        }

    def _trees(self, plan: Plan) -> dict[str, dict[str, bytes]]:
        names = {plan.variant, plan.rival, *(step.rival for step in plan.steps)}
        return {one: dict(self._read(one).files) for one in sorted(names) if not is_baseline(one)}

    def _end(
        self, errand: _Errand, state: str, reason: str, running_s: float | None = None
    ) -> None:
        """Write down how a job ended, and what it did cost."""
        errand.ended = True
        if errand.job is None:
            return
        changes: dict[str, Any] = {"state": state, "reason": reason}
        if running_s is not None:
            usd = self._usd_per_hour / 60 * -(-running_s // 60)
            changes["usd"] = usd
            self._costs.end(
                errand.job.id, outcome="ok" if state == DONE else state, usd=usd,
                wall_s=running_s, gpu_s=running_s if self._flavor.gpu else 0.0,
            )  # fmt: skip
        self._jobs.change(errand.job.id, **changes)
        errand.job = Job(**{**vars(errand.job), "state": state, "reason": reason})


def _remote(errand: _Errand) -> str:
    return errand.job.remote if errand.job is not None else "?"
