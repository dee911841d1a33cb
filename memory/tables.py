"""The tables. Rows never leave this room: `store.py` hands out the frozen values of `records.py`.

Every row has a key that its cause determines (a run's name, an experiment's number, a pair's
index), so writing the same thing twice is a no-op. Times are seconds since the epoch.
"""

from typing import Any

from sqlalchemy import JSON, Column, Index, UniqueConstraint
from sqlmodel import Field, SQLModel


class RunRow(SQLModel, table=True):
    """One launch of the loop."""

    __tablename__ = "runs"
    id: str = Field(primary_key=True)
    challenge: str = Field(index=True)
    rules: dict[str, Any] = Field(sa_column=Column(JSON, nullable=False))
    machine: str = Field(index=True)
    machine_label: str
    seed: int
    state: str
    budget_minutes: float
    budget_experiments: int
    spent_s: float = 0.0
    unsafe: bool = False
    delta: float | None = None
    calibrations: int = 0
    calibrated_at: float | None = None
    bandwidth_gbps: float | None = None
    family: str = ""
    agents: dict[str, Any] = Field(default_factory=dict, sa_column=Column(JSON, nullable=False))
    budget_usd: float | None = None
    parallel: int = 1
    executor: str = ""
    started_at: float


class VariantRow(SQLModel, table=True):
    """One engine tree with its settings, by content hash."""

    __tablename__ = "variants"
    id: str = Field(primary_key=True)
    parent: str | None = Field(default=None, index=True)
    engine: str
    settings: dict[str, str] = Field(sa_column=Column(JSON, nullable=False))
    run: str = Field(foreign_key="runs.id")
    created_at: float


class HypothesisRow(SQLModel, table=True):
    """What somebody expected, written down before it was measured."""

    __tablename__ = "hypotheses"
    __table_args__ = (Index("ix_hypotheses_lever", "lever", "target", "created_at"),)
    id: str = Field(primary_key=True)
    run: str = Field(foreign_key="runs.id", index=True)
    round: int
    agent: str
    parent: str
    lever: str
    target: str = ""
    settings: dict[str, str] = Field(sa_column=Column(JSON, nullable=False))
    mechanism: str
    predicted_gain: float
    prior_gain: float | None = None
    risk: str = ""
    falsifier: str = ""
    created_at: float


class ExperimentRow(SQLModel, table=True):
    """One hypothesis carried through."""

    __tablename__ = "experiments"
    id: str = Field(primary_key=True)
    run: str = Field(foreign_key="runs.id", index=True)
    hypothesis: str | None = Field(default=None, foreign_key="hypotheses.id", index=True)
    variant: str = Field(foreign_key="variants.id", index=True)
    rival: str
    started_at: float


class MeasurementRow(SQLModel, table=True):
    """One interleaved pair of timed blocks; a void one doesn't count."""

    __tablename__ = "measurements"
    __table_args__ = (UniqueConstraint("experiment", "stage", "index", "attempt"),)
    id: int | None = Field(default=None, primary_key=True)
    experiment: str = Field(foreign_key="experiments.id", index=True)
    stage: str
    index: int
    prompts: list[str] = Field(sa_column=Column(JSON, nullable=False))
    order: str
    tps: float
    tps_rival: float
    tokens: list[list[int]] = Field(sa_column=Column(JSON, nullable=False))
    conditions: dict[str, Any] = Field(sa_column=Column(JSON, nullable=False))
    attempt: int = 0
    void: str = ""
    measured_at: float


class AuditRow(SQLModel, table=True):
    """One timed block, rescored by the reference and replayed by its engine."""

    __tablename__ = "audits"
    __table_args__ = (UniqueConstraint("experiment", "stage", "index", "block"),)
    id: int | None = Field(default=None, primary_key=True)
    experiment: str = Field(foreign_key="experiments.id", index=True)
    stage: str
    index: int
    block: int
    num_tokens: int
    matches: int
    first_divergence: int | None
    regret: float
    worst_regret: float
    contradictions: int
    kl: float
    audited_at: float


class ScoreRow(SQLModel, table=True):
    """One document scored against the reference."""

    __tablename__ = "scores"
    __table_args__ = (UniqueConstraint("experiment", "split", "document"),)
    id: int | None = Field(default=None, primary_key=True)
    experiment: str = Field(foreign_key="experiments.id", index=True)
    split: str
    document: str
    num_tokens: int
    nll: float
    nll_reference: float
    kl: float
    top1_matches: int
    measured_at: float


class VerdictRow(SQLModel, table=True):
    """How an experiment ended. `gain` is a mean log ratio over the rival."""

    __tablename__ = "verdicts"
    experiment: str = Field(primary_key=True, foreign_key="experiments.id")
    verdict: str
    cause: str
    reason: str
    gain: float | None = None
    gain_stderr: float | None = None
    num_pairs: int | None = None
    tps: float | None = None
    ppl: float | None = None
    ppl_rise: float | None = None
    ppl_rise_high: float | None = None
    kl: float | None = None
    top1: float | None = None
    log: str | None = None
    decided_at: float = Field(index=True)


class FindingRow(SQLModel, table=True):
    """What was learned, and when it would be worth another try."""

    __tablename__ = "findings"
    experiment: str = Field(primary_key=True, foreign_key="experiments.id")
    lever: str = Field(index=True)
    value: str
    predicted_gain: float
    mechanism: str
    reopen: str
    unsafe: bool = False
    learned_at: float = Field(index=True)


class ClaimRow(SQLModel, table=True):
    """A leased intent. `fence` counts how often it changed hands; times are the database's."""

    __tablename__ = "claims"
    key: str = Field(primary_key=True)
    holder: str
    fence: int
    acquired_at: float
    expires_at: float = Field(index=True)


class PostRow(SQLModel, table=True):
    """Something that somebody said. `author` is stamped by the API, never given by the author."""

    __tablename__ = "posts"
    __table_args__ = (Index("ix_posts_channel", "channel", "posted_at"),)
    id: str = Field(primary_key=True)
    channel: str
    author: str = Field(index=True)
    text: str
    reply_to: str | None = Field(default=None, foreign_key="posts.id", index=True)
    posted_at: float = Field(index=True)


class MentionRow(SQLModel, table=True):
    """Somebody is named in a post: it goes to their inbox."""

    __tablename__ = "mentions"
    __table_args__ = (Index("ix_mentions_name", "name", "posted_at"),)
    post: str = Field(primary_key=True, foreign_key="posts.id")
    name: str = Field(primary_key=True)
    posted_at: float


class CostRow(SQLModel, table=True):
    """What one call of a model, or one stretch of measuring, has cost.

    Written before it begins, with the most that it can cost; `outcome` is then "in flight".
    """

    __tablename__ = "costs"
    __table_args__ = (
        Index("ix_costs_run", "run", "started_at"),
        Index("ix_costs_model", "role", "model"),
    )
    id: str = Field(primary_key=True)
    run: str = Field(foreign_key="runs.id")
    experiment: str | None = None
    role: str
    model: str
    outcome: str
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    usd: float | None = None
    wall_s: float = 0.0
    gpu_s: float = 0.0
    started_at: float


class DirectionRow(SQLModel, table=True):
    """What a researcher told a run while it went on."""

    __tablename__ = "directions"
    id: str = Field(primary_key=True)
    run: str = Field(foreign_key="runs.id", index=True)
    author: str
    text: str
    said_at: float


class ApprovalRow(SQLModel, table=True):
    """A person's answer to a change that waited for it."""

    __tablename__ = "approvals"
    id: str = Field(primary_key=True)
    experiment: str = Field(foreign_key="experiments.id", index=True)
    author: str
    text: str
    approved: bool
    said_at: float


class ObservationRow(SQLModel, table=True):
    """What a benchmarker looked at besides the verdict: a profile, more pairs, an ablation."""

    __tablename__ = "observations"
    id: str = Field(primary_key=True)
    experiment: str = Field(foreign_key="experiments.id", index=True)
    kind: str
    subject: str
    text: str
    figures: dict[str, Any] = Field(sa_column=Column(JSON, nullable=False))
    seen_at: float


# What follows is derived from the tables above, in the transaction that writes a verdict, so that
# asking takes milliseconds however much is known. `slipstream memory check` derives it anew.


class StandingRow(SQLModel, table=True):
    """The leaderboard: one variant on one challenge and kind of machine."""

    __tablename__ = "standings"
    __table_args__ = (
        Index("ix_standings_rank", "challenge", "machine", "kept", "rank"),
        Index("ix_standings_rival", "challenge", "machine", "rival"),
        Index("ix_standings_decided", "challenge", "machine", "decided_at"),
        Index("ix_standings_cause", "challenge", "machine", "cause", "decided_at"),
        Index("ix_standings_lineage", "challenge", "machine", "lineage", "kept", "rank"),
    )
    challenge: str = Field(primary_key=True)
    machine: str = Field(primary_key=True)
    variant: str = Field(primary_key=True)
    verdict: str
    cause: str
    reason: str
    kept: bool
    experiments: int
    tps: float | None
    log_speedup: float | None
    stderr: float | None
    num_pairs: int
    rank: float
    direct: bool
    rival: str | None
    ppl_rise: float | None
    kl: float | None
    top1: float | None
    lineage: str
    novelty: float
    decided_at: float


class RungRow(SQLModel, table=True):
    """How far up the ladder an experiment climbed: one rung, what it cost, what it said."""

    __tablename__ = "rungs"
    id: str = Field(primary_key=True)
    experiment: str = Field(foreign_key="experiments.id", index=True)
    rung: str
    outcome: str
    reason: str
    wall_s: float
    usd: float | None = None
    climbed_at: float


class JobRow(SQLModel, table=True):
    """One job on somebody else's machine; its row is there before the job is."""

    __tablename__ = "jobs"
    __table_args__ = (Index("ix_jobs_account", "account", "submitted_at"),)
    id: str = Field(primary_key=True)
    run: str = Field(foreign_key="runs.id")
    experiment: str = Field(index=True)
    account: str
    flavor: str
    remote: str
    state: str
    reason: str
    usd: float
    submitted_at: float
    ended_at: float | None = None


class LineageRow(SQLModel, table=True):
    """All that descends from one child of the seed, on one challenge and kind of machine."""

    __tablename__ = "lineages"
    __table_args__ = (Index("ix_lineages_rank", "challenge", "machine", "kept", "rank"),)
    challenge: str = Field(primary_key=True)
    machine: str = Field(primary_key=True)
    root: str = Field(primary_key=True)
    trials: int
    best: str
    kept: bool
    rank: float


class LedgerRow(SQLModel, table=True):
    """What is known of one value of one lever, for a family of models on a kind of machine."""

    __tablename__ = "ledger"
    lever: str = Field(primary_key=True)
    value: str = Field(primary_key=True)
    family: str = Field(primary_key=True)
    machine: str = Field(primary_key=True)
    kept: int
    no_gain: int
    quality: int
    failed: int
    undecided: int
    best_kept: bool
    best_gain: float | None
    best_stderr: float | None
    best_pairs: int
    best_experiment: str | None
    refuted_tps: float | None
    mechanism: str
    reopen: str
    evidence: list[tuple[float, str]] = Field(sa_column=Column(JSON, nullable=False))
    last_experiment: str
    last_seen: float = Field(index=True)


class CalibrationRow(SQLModel, table=True):
    """Predicted against measured gain of one agent and lever, as sums of log ratios."""

    __tablename__ = "calibration"
    agent: str = Field(primary_key=True)
    lever: str = Field(primary_key=True)
    family: str = Field(primary_key=True)
    machine: str = Field(primary_key=True)
    count: int
    predicted: float
    measured: float
    squared_error: float
