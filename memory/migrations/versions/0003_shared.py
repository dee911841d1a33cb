"""Claims, the board, full text, and what is derived: standings, ledger, calibration."""

import json
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    _new_columns()
    _claims_and_board()
    _derived()
    _full_text()


def _new_columns() -> None:
    op.add_column("runs", sa.Column("family", sa.String(), nullable=False, server_default=""))
    op.add_column("hypotheses", sa.Column("target", sa.String(), nullable=False, server_default=""))
    op.add_column("hypotheses", sa.Column("prior_gain", sa.Float(), nullable=True))
    op.drop_index("ix_hypotheses_lever", "hypotheses")
    op.create_index("ix_hypotheses_lever", "hypotheses", ["lever", "target", "created_at"])
    op.create_index("ix_experiments_hypothesis", "experiments", ["hypothesis"])
    op.add_column("verdicts", sa.Column("log", sa.String(), nullable=True))
    op.create_index("ix_verdicts_decided_at", "verdicts", ["decided_at"])
    op.create_index("ix_findings_learned_at", "findings", ["learned_at"])
    connection, tables = op.get_bind(), sa.MetaData()
    hypotheses, variants, runs = (
        sa.Table(name, tables, autoload_with=connection)
        for name in ("hypotheses", "variants", "runs")
    )
    settings = {
        row["id"]: _parsed(row["settings"])
        for row in connection.execute(sa.select(variants)).mappings().all()
    }
    for row in connection.execute(sa.select(hypotheses)).mappings().all():
        before, after = settings.get(row["parent"], {}), _parsed(row["settings"])
        changed = [f"{name}={v}" for name, v in sorted(after.items()) if before.get(name) != v]
        statement = hypotheses.update().where(hypotheses.c.id == row["id"])
        connection.execute(statement.values(target=", ".join(changed)))
    for row in connection.execute(sa.select(runs)).mappings().all():
        model = _parsed(row["rules"])["model"]
        family = next((name for sign, name in _FAMILIES.items() if sign in model), "")
        statement = runs.update().where(runs.c.id == row["id"])
        connection.execute(statement.values(family=family))


# Of the models that could be raced before this revision.
_FAMILIES = {
    "gemma3": "gemma3_text",
    "gemma-3": "gemma3_text",
    "smollm2": "llama",
    "llama": "llama",
}


def _parsed(value: Any) -> dict[str, str]:
    """Reflected JSON columns of SQLite come as text."""
    parsed: dict[str, str] = json.loads(value) if isinstance(value, str) else dict(value)
    return parsed


def _claims_and_board() -> None:
    op.create_table(
        "claims",
        sa.Column("key", sa.String(), primary_key=True),
        sa.Column("holder", sa.String(), nullable=False),
        sa.Column("fence", sa.Integer(), nullable=False),
        sa.Column("acquired_at", sa.Float(), nullable=False),
        sa.Column("expires_at", sa.Float(), nullable=False),
    )
    op.create_index("ix_claims_expires_at", "claims", ["expires_at"])
    op.create_table(
        "posts",
        sa.Column("id", sa.String(), primary_key=True),
        sa.Column("channel", sa.String(), nullable=False),
        sa.Column("author", sa.String(), nullable=False),
        sa.Column("text", sa.String(), nullable=False),
        sa.Column("reply_to", sa.String(), sa.ForeignKey("posts.id"), nullable=True),
        sa.Column("posted_at", sa.Float(), nullable=False),
    )
    op.create_index("ix_posts_posted_at", "posts", ["posted_at"])
    op.create_index("ix_posts_reply_to", "posts", ["reply_to"])
    op.create_index("ix_posts_channel", "posts", ["channel", "posted_at"])
    op.create_index("ix_posts_author", "posts", ["author"])
    op.create_table(
        "mentions",
        sa.Column("post", sa.String(), sa.ForeignKey("posts.id"), primary_key=True),
        sa.Column("name", sa.String(), primary_key=True),
        sa.Column("posted_at", sa.Float(), nullable=False),
    )
    op.create_index("ix_mentions_name", "mentions", ["name", "posted_at"])


def _derived() -> None:
    op.create_table(
        "standings",
        sa.Column("challenge", sa.String(), primary_key=True),
        sa.Column("machine", sa.String(), primary_key=True),
        sa.Column("variant", sa.String(), primary_key=True),
        sa.Column("verdict", sa.String(), nullable=False),
        sa.Column("cause", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("kept", sa.Boolean(), nullable=False),
        sa.Column("experiments", sa.Integer(), nullable=False),
        sa.Column("tps", sa.Float(), nullable=True),
        sa.Column("log_speedup", sa.Float(), nullable=True),
        sa.Column("stderr", sa.Float(), nullable=True),
        sa.Column("num_pairs", sa.Integer(), nullable=False),
        sa.Column("rank", sa.Float(), nullable=False),
        sa.Column("direct", sa.Boolean(), nullable=False),
        sa.Column("rival", sa.String(), nullable=True),
        sa.Column("ppl_rise", sa.Float(), nullable=True),
        sa.Column("kl", sa.Float(), nullable=True),
        sa.Column("top1", sa.Float(), nullable=True),
        sa.Column("lineage", sa.String(), nullable=False),
        sa.Column("novelty", sa.Float(), nullable=False),
        sa.Column("decided_at", sa.Float(), nullable=False),
    )
    place = ["challenge", "machine"]
    op.create_index("ix_standings_rank", "standings", [*place, "kept", "rank"])
    op.create_index("ix_standings_rival", "standings", [*place, "rival"])
    op.create_index("ix_standings_decided", "standings", [*place, "decided_at"])
    op.create_index("ix_standings_cause", "standings", [*place, "cause", "decided_at"])
    op.create_index("ix_standings_lineage", "standings", [*place, "lineage", "kept", "rank"])
    op.create_table(
        "lineages",
        sa.Column("challenge", sa.String(), primary_key=True),
        sa.Column("machine", sa.String(), primary_key=True),
        sa.Column("root", sa.String(), primary_key=True),
        sa.Column("trials", sa.Integer(), nullable=False),
        sa.Column("best", sa.String(), nullable=False),
        sa.Column("kept", sa.Boolean(), nullable=False),
        sa.Column("rank", sa.Float(), nullable=False),
    )
    op.create_index("ix_lineages_rank", "lineages", [*place, "kept", "rank"])
    op.create_table(
        "ledger",
        sa.Column("lever", sa.String(), primary_key=True),
        sa.Column("value", sa.String(), primary_key=True),
        sa.Column("family", sa.String(), primary_key=True),
        sa.Column("machine", sa.String(), primary_key=True),
        sa.Column("kept", sa.Integer(), nullable=False),
        sa.Column("no_gain", sa.Integer(), nullable=False),
        sa.Column("quality", sa.Integer(), nullable=False),
        sa.Column("failed", sa.Integer(), nullable=False),
        sa.Column("undecided", sa.Integer(), nullable=False),
        sa.Column("best_kept", sa.Boolean(), nullable=False),
        sa.Column("best_gain", sa.Float(), nullable=True),
        sa.Column("best_stderr", sa.Float(), nullable=True),
        sa.Column("best_pairs", sa.Integer(), nullable=False),
        sa.Column("best_experiment", sa.String(), nullable=True),
        sa.Column("refuted_tps", sa.Float(), nullable=True),
        sa.Column("mechanism", sa.String(), nullable=False),
        sa.Column("reopen", sa.String(), nullable=False),
        sa.Column("evidence", sa.JSON(), nullable=False),
        sa.Column("last_experiment", sa.String(), nullable=False),
        sa.Column("last_seen", sa.Float(), nullable=False),
    )
    op.create_index("ix_ledger_last_seen", "ledger", ["last_seen"])
    op.create_table(
        "calibration",
        sa.Column("agent", sa.String(), primary_key=True),
        sa.Column("lever", sa.String(), primary_key=True),
        sa.Column("family", sa.String(), primary_key=True),
        sa.Column("machine", sa.String(), primary_key=True),
        sa.Column("count", sa.Integer(), nullable=False),
        sa.Column("predicted", sa.Float(), nullable=False),
        sa.Column("measured", sa.Float(), nullable=False),
        sa.Column("squared_error", sa.Float(), nullable=False),
    )


_BODY = "coalesce({0}lever, '') || ' ' || coalesce({0}value, '') || ' ' || coalesce({0}mechanism, '') || ' ' || coalesce({0}reopen, '')"  # noqa: E501


def _full_text() -> None:
    """An index that the database itself keeps in step with the findings."""
    if op.get_bind().dialect.name == "postgresql":
        body = _BODY.format("")
        op.execute(
            "ALTER TABLE findings ADD COLUMN full_text tsvector "
            f"GENERATED ALWAYS AS (to_tsvector('simple', {body})) STORED"
        )
        op.execute("CREATE INDEX ix_findings_full_text ON findings USING gin (full_text)")
        return
    op.execute("CREATE VIRTUAL TABLE findings_text USING fts5(experiment UNINDEXED, body)")
    op.execute(
        "INSERT INTO findings_text(experiment, body) "
        f"SELECT experiment, {_BODY.format('')} FROM findings"
    )
    op.execute(
        "CREATE TRIGGER findings_text_insert AFTER INSERT ON findings BEGIN "
        "INSERT INTO findings_text(experiment, body) "
        f"VALUES (new.experiment, {_BODY.format('new.')}); END"
    )
    op.execute(
        "CREATE TRIGGER findings_text_delete AFTER DELETE ON findings BEGIN "
        "DELETE FROM findings_text WHERE experiment = old.experiment; END"
    )
