"""Where jobs go out from: their money, their quota, their rows in memory.

What a job can cost at most is committed before it is submitted, and its row is written before that,
so whoever is killed in between finds out what became of it.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from slipstream.evaluation.baselines import is_baseline
from slipstream.evaluation.challenge import Challenge
from slipstream.evaluation.errors import OutOfMoneyError, SlipstreamError, UnreachedError
from slipstream.evaluation.plans import Plan, plan_to_json
from slipstream.evaluation.secret import secret_text
from slipstream.kernels.variants import Tree
from slipstream.memory.costs import MEASURING, Cost, Costs
from slipstream.memory.database import Database
from slipstream.memory.jobs import DONE, FAILED, RUNNING, Job, Jobs

from .flavors import Flavor
from .hub import Hub, errand_files, there

MOST_JOBS = 3  # of one experiment


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


class Dispatch:
    """Submits jobs, finds those of an earlier session, and settles what they cost.

    Args:
        read: returns the tree of a variant.
    """

    def __init__(
        self,
        hub: Hub,
        flavor: Flavor,
        challenge: Challenge,
        database: Database,
        read: Callable[[str], Tree],
        terms: Terms,
        say: Callable[[str], None],
    ) -> None:
        price = hub.usd_per_hour(flavor.name)
        self._flavor = (
            flavor if price is None else flavor.model_copy(update={"usd_per_hour": price})
        )
        self._hub, self._challenge, self._read = hub, challenge, read
        self._jobs, self._costs, self._terms, self._say = (
            Jobs(database),
            Costs(database),
            terms,
            say,
        )

    def find(self, plan: Plan) -> Job | None:
        """Return the job that an earlier session has begun for this experiment, if it did."""
        job = self._jobs.open_one(plan.experiment)
        if job is None:
            return None
        remote = job.remote or self._hub.find(job.id)
        if not remote:  # it was never submitted; in the quota it counts
            self.end(job, FAILED, "never seen on the Hub", 0.0)
            return None
        self._say(f"job {remote} of {plan.experiment} goes on")
        self._jobs.change(job.id, remote=remote, state=RUNNING)
        return replace(job, remote=remote, state=RUNNING)

    def submit(self, plan: Plan) -> Job:
        """Commit what a job can cost at most, then submit it.

        Raises:
            OutOfMoneyError: the run has less left.
            QuotaError: no more jobs today.
        """
        terms, flavor = self._terms, self._flavor
        before = self._jobs.of_experiment(plan.experiment)
        broken = [job for job in before if job.state == FAILED and job.remote]
        if len(broken) >= MOST_JOBS:
            reason = (
                f"{len(broken)} jobs of {plan.experiment} ended before they had told everything, "
                f"the last with {broken[-1].reason!r}; their logs are at {self._hub.page}"
            )
            raise SlipstreamError(reason) if plan.rule is None else UnreachedError(reason)
        usd = flavor.usd(terms.timeout_s)
        name = f"{plan.experiment}-{len(before)}"
        job = Job(name, terms.run, plan.experiment, self._hub.namespace, flavor.name, usd)
        kept = 0.0 if plan.last else usd  # for the champion's verification
        about = plan.experiment if plan.rule is not None else None
        cost = Cost(name, terms.run, about, MEASURING, f"hf-jobs {flavor.name}", usd=usd)
        left = self._costs.begin_within(cost, terms.usd, kept)
        if left is not None:
            verification = f", ${kept:.2f} more are for the verification" if kept else ""
            raise OutOfMoneyError(
                f"a job on {flavor.name} may cost ${usd:.2f}{verification}, and of the budget "
                f"of ${terms.usd or 0.0:.2f} ${left:.2f} is left"
            )
        try:
            self._jobs.reserve(job, terms.per_day)
        except SlipstreamError:
            self._costs.end(name, outcome="not submitted", usd=0.0)
            raise
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
        return replace(job, remote=remote, state=RUNNING)

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

    def end(self, job: Job, state: str, reason: str, running_s: float | None = None) -> Job:
        """Write down how a job ended, and what it did cost; None: what was committed stays."""
        changes: dict[str, Any] = {"state": state, "reason": reason}
        if running_s is not None:
            usd = self._flavor.usd(running_s)
            changes["usd"] = usd
            self._costs.end(
                job.id, outcome="ok" if state == DONE else state, usd=usd,
                wall_s=running_s, gpu_s=running_s if self._flavor.gpu else 0.0,
            )  # fmt: skip
        self._jobs.change(job.id, **changes)
        return replace(job, state=state, reason=reason)
