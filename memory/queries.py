"""The statements that memory runs, built once: building one costs more than running it."""

from functools import cache
from typing import Any

from sqlalchemy import ColumnElement, Insert, Select, Table, Update, bindparam, func, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlmodel import SQLModel

from . import tables as _tables  # noqa: F401  (fills the metadata below)

TABLES = SQLModel.metadata.tables
_RUNS, _VARIANTS, _HYPOTHESES = TABLES["runs"], TABLES["variants"], TABLES["hypotheses"]
_EXPERIMENTS, _VERDICTS = TABLES["experiments"], TABLES["verdicts"]
_MEASUREMENTS, _SCORES, _AUDITS = TABLES["measurements"], TABLES["scores"], TABLES["audits"]
_FINDINGS, _STANDINGS = TABLES["findings"], TABLES["standings"]
_LEDGER, _CALIBRATION = TABLES["ledger"], TABLES["calibration"]
_LINEAGES = TABLES["lineages"]

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

OBSERVATIONS = (
    select(TABLES["observations"])
    .where(TABLES["observations"].c.experiment == bindparam("of"))
    .order_by(TABLES["observations"].c.id)
)
RUNGS = (
    select(TABLES["rungs"])
    .where(TABLES["rungs"].c.experiment == bindparam("of"))
    .order_by(TABLES["rungs"].c.climbed_at, TABLES["rungs"].c.id)
)
FINDINGS = select(TABLES["findings"]).order_by(TABLES["findings"].c.learned_at)


def variants_beginning_with(prefix: str) -> Select[Any]:
    """Return up to two variants: enough to see whether the beginning is unique."""
    return select(_VARIANTS).where(_VARIANTS.c.id.startswith(prefix, autoescape=True)).limit(2)


def change_run(run: str, changes: dict[str, Any]) -> Update:
    """Set fields of a run."""
    return update(_RUNS).where(_RUNS.c.id == run).values(**changes)


def get_further(row: dict[str, Any]) -> Update:
    """Bring a run up to where another copy of it has got."""
    names = ("state", "spent_s", "delta", "calibrations", "calibrated_at", "bandwidth_gbps")
    return (
        update(_RUNS)
        .where(_RUNS.c.id == row["id"], _RUNS.c.spent_s < row["spent_s"])
        .values({name: row[name] for name in names})
    )


def insert_into(table: Table, dialect: str) -> sqlite.Insert | postgresql.Insert:
    """Return an insert that can say what happens when a key is taken."""
    return sqlite.insert(table) if dialect == "sqlite" else postgresql.insert(table)


@cache
def insert_or_ignore(dialect: str, table: Table) -> Insert:
    """Insert rows; a row whose key is taken leaves the first one as it is."""
    return insert_into(table, dialect).on_conflict_do_nothing()


@cache
def upsert(dialect: str, table: Table) -> Insert:
    """Insert rows; a row whose key is taken is overwritten."""
    statement = insert_into(table, dialect)
    values = {c.name: statement.excluded[c.name] for c in table.columns if not c.primary_key}
    keys = [column.name for column in table.primary_key]
    return statement.on_conflict_do_update(index_elements=keys, set_=values)


# What derived rows are derived from: judged experiments, with what was expected and learned

_JUDGED = (
    select(
        _EXPERIMENTS.c.id,
        _EXPERIMENTS.c.variant,
        _EXPERIMENTS.c.rival,
        _EXPERIMENTS.c.started_at,
        *(c for c in _VERDICTS.c if not c.primary_key and c.name != "log"),
        _RUNS.c.challenge,
        _RUNS.c.machine,
        _RUNS.c.family,
        _RUNS.c.rules["baseline"].as_string().label("baseline"),
        _HYPOTHESES.c.agent,
        _HYPOTHESES.c.predicted_gain,
        _HYPOTHESES.c.prior_gain,
        _FINDINGS.c.lever,
        _FINDINGS.c.value,
        _FINDINGS.c.mechanism,
        _FINDINGS.c.reopen,
    )
    .select_from(_EXPERIMENTS)
    .join(_VERDICTS)
    .join(_RUNS, _RUNS.c.id == _EXPERIMENTS.c.run)
    .outerjoin(_HYPOTHESES, _HYPOTHESES.c.id == _EXPERIMENTS.c.hypothesis)
    .outerjoin(_FINDINGS, _FINDINGS.c.experiment == _EXPERIMENTS.c.id)
)
JUDGED = _JUDGED.where(_EXPERIMENTS.c.id == bindparam("experiment"))
ALL_JUDGED = _JUDGED.order_by(_VERDICTS.c.decided_at, _EXPERIMENTS.c.id)
JUDGED_OF_VARIANT = _JUDGED.where(
    _EXPERIMENTS.c.variant == bindparam("variant"),
    _RUNS.c.challenge == bindparam("challenge"),
    _RUNS.c.machine == bindparam("machine"),
).order_by(_EXPERIMENTS.c.started_at, _EXPERIMENTS.c.id)

LATEST_VERDICT = select(func.max(_VERDICTS.c.decided_at))
PARENTS = select(_VARIANTS.c.id, _VARIANTS.c.parent)
_LINE = (
    select(_VARIANTS.c.id, _VARIANTS.c.parent)
    .where(_VARIANTS.c.id == bindparam("variant"))
    .cte("line", recursive=True)
)
_LINE = _LINE.union(
    select(_VARIANTS.c.id, _VARIANTS.c.parent).where(_VARIANTS.c.id == _LINE.c.parent)
)
ANCESTORS = select(_LINE.c.id, _LINE.c.parent)


def _at(table: Table, *names: str) -> list[ColumnElement[bool]]:
    return [table.c[name] == bindparam(name) for name in names]


LEDGER_ENTRY = select(_LEDGER).where(*_at(_LEDGER, "lever", "value", "family", "machine"))
CALIBRATION_ENTRY = select(_CALIBRATION).where(
    *_at(_CALIBRATION, "agent", "lever", "family", "machine")
)
CALIBRATION = select(_CALIBRATION).where(*_at(_CALIBRATION, "family", "machine"))
STANDING = select(_STANDINGS).where(*_at(_STANDINGS, "challenge", "machine", "variant"))
LINEAGE = select(_LINEAGES).where(*_at(_LINEAGES, "challenge", "machine", "root"))
BEST_OF_LINEAGE = (
    select(_STANDINGS.c.variant, _STANDINGS.c.kept, _STANDINGS.c.rank)
    .where(*_at(_STANDINGS, "challenge", "machine"), _STANDINGS.c.lineage == bindparam("root"))
    .order_by(_STANDINGS.c.kept.desc(), _STANDINGS.c.rank.desc(), _STANDINGS.c.variant.desc())
    .limit(1)
)
HANGING_ON = select(_STANDINGS.c.variant).where(
    *_at(_STANDINGS, "challenge", "machine", "rival"), ~_STANDINGS.c.direct
)
