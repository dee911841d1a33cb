"""Pairs keep tokens, conditions and void attempts; timed blocks are audited; A/A tests expire."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    with op.batch_alter_table("runs") as runs:
        runs.add_column(sa.Column("calibrations", sa.Integer(), nullable=False, server_default="0"))
        runs.add_column(sa.Column("calibrated_at", sa.Float(), nullable=True))
    _new_measurements()
    op.create_table(
        "audits",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("experiment", sa.String(), nullable=False),
        sa.Column("stage", sa.String(), nullable=False),
        sa.Column("index", sa.Integer(), nullable=False),
        sa.Column("block", sa.Integer(), nullable=False),
        sa.Column("num_tokens", sa.Integer(), nullable=False),
        sa.Column("matches", sa.Integer(), nullable=False),
        sa.Column("first_divergence", sa.Integer(), nullable=True),
        sa.Column("regret", sa.Float(), nullable=False),
        sa.Column("worst_regret", sa.Float(), nullable=False),
        sa.Column("contradictions", sa.Integer(), nullable=False),
        sa.Column("kl", sa.Float(), nullable=False),
        sa.Column("audited_at", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(["experiment"], ["experiments.id"]),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("experiment", "stage", "index", "block"),
    )
    op.create_index("ix_audits_experiment", "audits", ["experiment"])


def _new_measurements() -> None:
    """Copy the table over: SQLite can't change a unique constraint in place."""
    op.create_table(
        "measurements_new",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("experiment", sa.String(), nullable=False),
        sa.Column("stage", sa.String(), nullable=False),
        sa.Column("index", sa.Integer(), nullable=False),
        sa.Column("prompts", sa.JSON(), nullable=False),
        sa.Column("order", sa.String(), nullable=False),
        sa.Column("tps", sa.Float(), nullable=False),
        sa.Column("tps_rival", sa.Float(), nullable=False),
        sa.Column("tokens", sa.JSON(), nullable=False),
        sa.Column("conditions", sa.JSON(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("void", sa.String(), nullable=False),
        sa.Column("measured_at", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(["experiment"], ["experiments.id"]),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("experiment", "stage", "index", "attempt"),
    )
    connection = op.get_bind()
    tables = sa.MetaData()
    old = sa.Table("measurements", tables, autoload_with=connection)
    new = sa.Table("measurements_new", tables, autoload_with=connection)
    kept = ("experiment", "stage", "index", "order", "tps", "tps_rival", "measured_at")
    for row in connection.execute(sa.select(old).order_by(old.c.id)).mappings().all():
        values = {name: row[name] for name in kept}
        values |= {"prompts": [row["prompt"]], "tokens": [], "conditions": {}}
        connection.execute(new.insert().values(**values, attempt=0, void=""))
    op.drop_table("measurements")
    op.rename_table("measurements_new", "measurements")
    op.create_index("ix_measurements_experiment", "measurements", ["experiment"])
