"""The statements that memory runs, built once: building one costs more than running it."""

from functools import cache
from typing import Any

from sqlalchemy import Insert, Select, Table, Update, bindparam, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlmodel import SQLModel

from . import tables as _tables  # noqa: F401  (fills the metadata below)

TABLES = SQLModel.metadata.tables
_RUNS, _VARIANTS, _HYPOTHESES = TABLES["runs"], TABLES["variants"], TABLES["hypotheses"]
_EXPERIMENTS, _VERDICTS = TABLES["experiments"], TABLES["verdicts"]
_MEASUREMENTS, _SCORES, _AUDITS = TABLES["measurements"], TABLES["scores"], TABLES["audits"]

RUN = select(_RUNS).where(_RUNS.c.id == bindparam("run"))
RUNS = select(_RUNS).order_by(_RUNS.c.started_at)
LATEST_RUNS = select(_RUNS.c.id).order_by(_RUNS.c.started_at.desc()).limit(5)
ADD_RUN_TIME = (
    update(_RUNS)
    .where(_RUNS.c.id == bindparam("of_run"), _RUNS.c.spent_s < bindparam("new_spent_s"))
    .values(spent_s=bindparam("new_spent_s"))
)

VARIANT_IDS = select(_VARIANTS.c.id).order_by(_VARIANTS.c.created_at)
VARIANTS = select(_VARIANTS).where(_VARIANTS.c.id.in_(bindparam("ids", expanding=True)))

HYPOTHESIS_IDS_OF_RUN = (
    select(_HYPOTHESES.c.id).where(_HYPOTHESES.c.run == bindparam("run")).order_by(_HYPOTHESES.c.id)
)
HYPOTHESES = select(_HYPOTHESES).where(_HYPOTHESES.c.id.in_(bindparam("ids", expanding=True)))

_EXPERIMENT_IDS = select(_EXPERIMENTS.c.id).order_by(_EXPERIMENTS.c.started_at, _EXPERIMENTS.c.id)
ALL_EXPERIMENT_IDS = _EXPERIMENT_IDS
EXPERIMENT_IDS_OF_RUN = _EXPERIMENT_IDS.where(_EXPERIMENTS.c.run == bindparam("run"))
EXPERIMENT_IDS_OF_VARIANT = _EXPERIMENT_IDS.where(_EXPERIMENTS.c.variant == bindparam("variant"))
EXPERIMENT_IDS_ON = _EXPERIMENT_IDS.join(_RUNS).where(
    _RUNS.c.challenge == bindparam("challenge"), _RUNS.c.machine == bindparam("machine")
)
EXPERIMENTS = (
    select(*_EXPERIMENTS.c, *(column for column in _VERDICTS.c if not column.primary_key))
    .select_from(_EXPERIMENTS.outerjoin(_VERDICTS))
    .where(_EXPERIMENTS.c.id.in_(bindparam("ids", expanding=True)))
)
RUN_OF_EXPERIMENT = select(_EXPERIMENTS.c.run).where(_EXPERIMENTS.c.id == bindparam("experiment"))

PAIRS = (
    select(_MEASUREMENTS)
    .where(_MEASUREMENTS.c.experiment == bindparam("experiment"))
    .order_by(_MEASUREMENTS.c.stage, _MEASUREMENTS.c.index, _MEASUREMENTS.c.attempt)
)
AUDITS = (
    select(_AUDITS)
    .where(_AUDITS.c.experiment == bindparam("experiment"))
    .order_by(_AUDITS.c.stage, _AUDITS.c.index, _AUDITS.c.block)
)
SCORES = (
    select(_SCORES).where(_SCORES.c.experiment == bindparam("experiment")).order_by(_SCORES.c.id)
)

FINDINGS = select(TABLES["findings"]).order_by(TABLES["findings"].c.learned_at)


def variants_beginning_with(prefix: str) -> Select[Any]:
    """Return up to two variants: enough to see whether the beginning is unique."""
    return select(_VARIANTS).where(_VARIANTS.c.id.startswith(prefix, autoescape=True)).limit(2)


def change_run(run: str, changes: dict[str, Any]) -> Update:
    """Set fields of a run."""
    return update(_RUNS).where(_RUNS.c.id == run).values(**changes)


@cache
def insert_or_ignore(dialect: str, table: Table) -> Insert:
    """Insert rows; a row whose key is taken leaves the first one as it is."""
    insert = sqlite.insert if dialect == "sqlite" else postgresql.insert
    return insert(table).on_conflict_do_nothing()
