"""Agents that think: what they cost, what they were told, what they looked at besides."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    for name in ("risk", "falsifier"):
        op.add_column("hypotheses", sa.Column(name, sa.String(), nullable=False, server_default=""))
    op.add_column("runs", sa.Column("agents", sa.JSON(), nullable=False, server_default="{}"))
    op.add_column("runs", sa.Column("budget_usd", sa.Float(), nullable=True))
    op.create_table(
        "costs",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("run", sa.String(), nullable=False),
        sa.Column("experiment", sa.String(), nullable=True),
        sa.Column("role", sa.String(), nullable=False),
        sa.Column("model", sa.String(), nullable=False),
        sa.Column("outcome", sa.String(), nullable=False),
        sa.Column("input_tokens", sa.Integer(), nullable=False),
        sa.Column("cached_tokens", sa.Integer(), nullable=False),
        sa.Column("output_tokens", sa.Integer(), nullable=False),
        sa.Column("usd", sa.Float(), nullable=True),
        sa.Column("wall_s", sa.Float(), nullable=False),
        sa.Column("gpu_s", sa.Float(), nullable=False),
        sa.Column("started_at", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(["run"], ["runs.id"]),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_costs_run", "costs", ["run", "started_at"])
    op.create_index("ix_costs_model", "costs", ["role", "model"])
    for name, subject in (("directions", "run"), ("approvals", "experiment")):
        parent = f"{subject}s.id"
        op.create_table(
            name,
            sa.Column("id", sa.String(), nullable=False),
            sa.Column(subject, sa.String(), nullable=False),
            sa.Column("author", sa.String(), nullable=False),
            sa.Column("text", sa.String(), nullable=False),
            *([sa.Column("approved", sa.Boolean(), nullable=False)] * (name == "approvals")),
            sa.Column("said_at", sa.Float(), nullable=False),
            sa.ForeignKeyConstraint([subject], [parent]),
            sa.PrimaryKeyConstraint("id"),
        )
        op.create_index(f"ix_{name}_{subject}", name, [subject])
    op.create_table(
        "observations",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("experiment", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("subject", sa.String(), nullable=False),
        sa.Column("text", sa.String(), nullable=False),
        sa.Column("figures", sa.JSON(), nullable=False),
        sa.Column("seen_at", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(["experiment"], ["experiments.id"]),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_observations_experiment", "observations", ["experiment"])
