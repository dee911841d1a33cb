"""The tables. Rows never leave this room: `store.py` hands out the frozen values of `records.py`.

Every row has a key that its cause determines (a run's name, an experiment's number, a pair's
index), so writing the same thing twice is a no-op. Times are seconds since the epoch.
"""

from typing import Any

from sqlalchemy import JSON, Column, UniqueConstraint
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
    id: str = Field(primary_key=True)
    run: str = Field(foreign_key="runs.id", index=True)
    round: int
    agent: str
    parent: str
    lever: str = Field(index=True)
    settings: dict[str, str] = Field(sa_column=Column(JSON, nullable=False))
    mechanism: str
    predicted_gain: float
    created_at: float


class ExperimentRow(SQLModel, table=True):
    """One hypothesis carried through."""

    __tablename__ = "experiments"
    id: str = Field(primary_key=True)
    run: str = Field(foreign_key="runs.id", index=True)
    hypothesis: str | None = Field(default=None, foreign_key="hypotheses.id")
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
    decided_at: float


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
    learned_at: float
