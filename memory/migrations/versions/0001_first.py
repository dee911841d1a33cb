"""The first revision: runs, variants, hypotheses, experiments, measurements, findings."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "runs",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("challenge", sa.String(), nullable=False),
        sa.Column("rules", sa.JSON(), nullable=False),
        sa.Column("machine", sa.String(), nullable=False),
        sa.Column("machine_label", sa.String(), nullable=False),
        sa.Column("seed", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("budget_minutes", sa.Float(), nullable=False),
        sa.Column("budget_experiments", sa.Integer(), nullable=False),
        sa.Column("spent_s", sa.Float(), nullable=False),
        sa.Column("unsafe", sa.Boolean(), nullable=False),
        sa.Column("delta", sa.Float(), nullable=True),
        sa.Column("bandwidth_gbps", sa.Float(), nullable=True),
        sa.Column("started_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(op.f("ix_runs_challenge"), "runs", ["challenge"], unique=False)
    op.create_index(op.f("ix_runs_machine"), "runs", ["machine"], unique=False)
    op.create_table(
        "hypotheses",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("run", sa.String(), nullable=False),
        sa.Column("round", sa.Integer(), nullable=False),
        sa.Column("agent", sa.String(), nullable=False),
        sa.Column("parent", sa.String(), nullable=False),
        sa.Column("lever", sa.String(), nullable=False),
        sa.Column("settings", sa.JSON(), nullable=False),
        sa.Column("mechanism", sa.String(), nullable=False),
        sa.Column("predicted_gain", sa.Float(), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(
            ["run"],
            ["runs.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(op.f("ix_hypotheses_lever"), "hypotheses", ["lever"], unique=False)
    op.create_index(op.f("ix_hypotheses_run"), "hypotheses", ["run"], unique=False)
    op.create_table(
        "variants",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("parent", sa.String(), nullable=True),
        sa.Column("engine", sa.String(), nullable=False),
        sa.Column("settings", sa.JSON(), nullable=False),
        sa.Column("run", sa.String(), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(
            ["run"],
            ["runs.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(op.f("ix_variants_parent"), "variants", ["parent"], unique=False)
    op.create_table(
        "experiments",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("run", sa.String(), nullable=False),
        sa.Column("hypothesis", sa.String(), nullable=True),
        sa.Column("variant", sa.String(), nullable=False),
        sa.Column("rival", sa.String(), nullable=False),
        sa.Column("started_at", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(
            ["hypothesis"],
            ["hypotheses.id"],
        ),
        sa.ForeignKeyConstraint(
            ["run"],
            ["runs.id"],
        ),
        sa.ForeignKeyConstraint(
            ["variant"],
            ["variants.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(op.f("ix_experiments_run"), "experiments", ["run"], unique=False)
    op.create_index(op.f("ix_experiments_variant"), "experiments", ["variant"], unique=False)
    op.create_table(
        "findings",
        sa.Column("experiment", sa.String(), nullable=False),
        sa.Column("lever", sa.String(), nullable=False),
        sa.Column("value", sa.String(), nullable=False),
        sa.Column("predicted_gain", sa.Float(), nullable=False),
        sa.Column("mechanism", sa.String(), nullable=False),
        sa.Column("reopen", sa.String(), nullable=False),
        sa.Column("unsafe", sa.Boolean(), nullable=False),
        sa.Column("learned_at", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(
            ["experiment"],
            ["experiments.id"],
        ),
        sa.PrimaryKeyConstraint("experiment"),
    )
    op.create_index(op.f("ix_findings_lever"), "findings", ["lever"], unique=False)
    op.create_table(
        "measurements",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("experiment", sa.String(), nullable=False),
        sa.Column("stage", sa.String(), nullable=False),
        sa.Column("index", sa.Integer(), nullable=False),
        sa.Column("prompt", sa.String(), nullable=False),
        sa.Column("order", sa.String(), nullable=False),
        sa.Column("tps", sa.Float(), nullable=False),
        sa.Column("tps_rival", sa.Float(), nullable=False),
        sa.Column("measured_at", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(
            ["experiment"],
            ["experiments.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("experiment", "stage", "index"),
    )
    op.create_index(
        op.f("ix_measurements_experiment"), "measurements", ["experiment"], unique=False
    )
    op.create_table(
        "scores",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("experiment", sa.String(), nullable=False),
        sa.Column("split", sa.String(), nullable=False),
        sa.Column("document", sa.String(), nullable=False),
        sa.Column("num_tokens", sa.Integer(), nullable=False),
        sa.Column("nll", sa.Float(), nullable=False),
        sa.Column("nll_reference", sa.Float(), nullable=False),
        sa.Column("kl", sa.Float(), nullable=False),
        sa.Column("top1_matches", sa.Integer(), nullable=False),
        sa.Column("measured_at", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(
            ["experiment"],
            ["experiments.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("experiment", "split", "document"),
    )
    op.create_index(op.f("ix_scores_experiment"), "scores", ["experiment"], unique=False)
    op.create_table(
        "verdicts",
        sa.Column("experiment", sa.String(), nullable=False),
        sa.Column("verdict", sa.String(), nullable=False),
        sa.Column("cause", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("gain", sa.Float(), nullable=True),
        sa.Column("gain_stderr", sa.Float(), nullable=True),
        sa.Column("num_pairs", sa.Integer(), nullable=True),
        sa.Column("tps", sa.Float(), nullable=True),
        sa.Column("ppl", sa.Float(), nullable=True),
        sa.Column("ppl_rise", sa.Float(), nullable=True),
        sa.Column("ppl_rise_high", sa.Float(), nullable=True),
        sa.Column("kl", sa.Float(), nullable=True),
        sa.Column("top1", sa.Float(), nullable=True),
        sa.Column("decided_at", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(
            ["experiment"],
            ["experiments.id"],
        ),
        sa.PrimaryKeyConstraint("experiment"),
    )
