"""Jobs on somebody else's machines: their rows are there before the jobs are.

So a budget or a quota holds whatever happens in between: what was begun counts, also if the process
died before it knew the job's name, and what can't be read can't be submitted.
"""

from dataclasses import asdict, dataclass, replace
from typing import Any

from sqlalchemy import Connection, func, select, update

from slipstream.evaluation.errors import SlipstreamError

from .database import Database
from .queries import TABLES, insert_or_ignore

SUBMITTING, RUNNING, DONE, FAILED, CANCELLED = (
    "submitting",
    "running",
    "done",
    "failed",
    "cancelled",
)
OPEN = (SUBMITTING, RUNNING)
DAY_S = 86_400.0
_JOBS = TABLES["jobs"]


@dataclass(frozen=True)
class Job:
    """One job.

    Attributes:
        id: ours; the job carries it as a label, so that it is found again.
        account: whose quota it counts against.
        remote: its name there; empty until it is known.
        usd: what it cost; while it is open, the most that it can.
        submitted_at: by the database's clock.
    """

    id: str
    run: str
    experiment: str
    account: str
    flavor: str
    usd: float
    remote: str = ""
    state: str = SUBMITTING
    reason: str = ""
    submitted_at: float = 0.0
    ended_at: float | None = None


class QuotaError(SlipstreamError):
    """No more jobs today."""


class Jobs:
    """The jobs in a memory."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def reserve(self, job: Job, per_day: int) -> None:
        """Write a job down that is about to be submitted, if the account's quota has room.

        Raises:
            QuotaError: `per_day` jobs of the account were begun within 24 hours.
        """

        def work(connection: Connection) -> float | None:
            self._database.lock(connection, "jobs")
            now = float(connection.scalar(select(self._database.now)) or 0.0)
            row = asdict(replace(job, submitted_at=now))
            connection.execute(insert_or_ignore(self._database.dialect, _JOBS), row)
            begun = connection.execute(
                select(_JOBS.c.id, _JOBS.c.submitted_at)
                .where(_JOBS.c.account == job.account, _JOBS.c.submitted_at > now - DAY_S)
                .order_by(_JOBS.c.submitted_at, _JOBS.c.id)
            ).all()
            if len(begun) <= per_day:
                return None
            connection.execute(_JOBS.delete().where(_JOBS.c.id == job.id))
            return float(begun[len(begun) - 1 - per_day].submitted_at) + DAY_S - now

        wait_s = self._database.write(work)
        if wait_s is not None:
            raise QuotaError(
                f"{per_day} jobs of {job.account} were begun within 24 hours, which is the quota; "
                f"the next may begin in {wait_s / 3600:.1f} hours"
            )

    def change(self, name: str, **fields: Any) -> None:
        """Change a job's remote, state, reason, usd; an ended one gets its time."""
        if fields.get("state") not in (None, *OPEN):
            fields["ended_at"] = self._database.now
        statement = update(_JOBS).where(_JOBS.c.id == name).values(**fields)
        self._database.write(lambda connection: connection.execute(statement))

    def of_run(self, run: str) -> list[Job]:
        """Return a run's jobs, oldest first."""
        query = select(_JOBS).where(_JOBS.c.run == run).order_by(_JOBS.c.submitted_at, _JOBS.c.id)
        rows = self._database.read(lambda connection: connection.execute(query).mappings().all())
        return [Job(**row) for row in rows]

    def open_one(self, experiment: str) -> Job | None:
        """Return the open job of an experiment, if there is one."""
        query = select(_JOBS).where(_JOBS.c.experiment == experiment, _JOBS.c.state.in_(OPEN))
        rows = self._database.read(lambda connection: connection.execute(query).mappings().all())
        return Job(**rows[-1]) if rows else None

    def usd(self, experiment: str) -> float:
        """Return what the jobs of an experiment have cost, or may yet."""
        query = select(func.sum(_JOBS.c.usd)).where(_JOBS.c.experiment == experiment)
        return float(self._database.read(lambda connection: connection.scalar(query)) or 0.0)

    def of_experiment(self, experiment: str) -> list[Job]:
        """Return the jobs that an experiment has had, oldest first."""
        query = select(_JOBS).where(_JOBS.c.experiment == experiment)
        query = query.order_by(_JOBS.c.submitted_at, _JOBS.c.id)
        rows = self._database.read(lambda connection: connection.execute(query).mappings().all())
        return [Job(**row) for row in rows]
