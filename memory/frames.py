"""Memory as pandas frames, for notebooks."""

from dataclasses import asdict
from typing import Any

import pandas as pd

from .costs import Costs
from .leaderboard import leaderboard
from .store import Memory

_TIMES = ["started_at", "created_at", "decided_at", "learned_at", "measured_at"]


def runs_frame(memory: Memory) -> pd.DataFrame:
    """Return one row per run."""
    return _frame([asdict(run) for run in memory.runs()])


def experiments_frame(memory: Memory, run: str | None = None) -> pd.DataFrame:
    """Return one row per experiment, hypothesis and verdict side by side.

    `gain` and `predicted` are speed ratios minus one; the database holds log ratios.
    """
    rows = []
    for experiment in memory.experiments(run=run):
        estimate = experiment.estimate
        low, high = estimate.interval() if estimate else (None, None)
        row: dict[str, Any] = asdict(experiment)
        row["gain"] = estimate.ratio - 1 if estimate else None
        row["gain_low"] = low - 1 if low is not None else None
        row["gain_high"] = high - 1 if high is not None else None
        if experiment.hypothesis:
            hypothesis = memory.hypothesis(experiment.hypothesis)
            row |= {
                "lever": hypothesis.lever,
                "predicted": hypothesis.predicted_gain,
                "mechanism": hypothesis.mechanism,
                "round": hypothesis.round,
            }
        rows.append(row)
    return _frame(rows)


def pairs_frame(memory: Memory, experiment: str, *, void: bool = False) -> pd.DataFrame:
    """Return one row per measured pair of an experiment, with the machine's conditions.

    Args:
        void: with the pairs that don't count; the column `void` says why.
    """
    rows = []
    for pair in memory.evidence(experiment).pairs:
        if void or not pair.void:
            row = asdict(pair) | {"log_ratio": pair.log_ratio} | asdict(pair.conditions)
            rows.append({k: v for k, v in row.items() if k not in ("tokens", "conditions")})
    return pd.DataFrame(rows)


def leaderboard_frame(memory: Memory, challenge: str, machine: str) -> pd.DataFrame:
    """Return the standings."""
    return pd.DataFrame([asdict(standing) for standing in leaderboard(memory, challenge, machine)])


def findings_frame(memory: Memory) -> pd.DataFrame:
    """Return one row per finding."""
    return _frame([asdict(finding) for finding in memory.findings()])


def costs_frame(memory: Memory, run: str) -> pd.DataFrame:
    """Return one row per model call or stretch of measuring of a run: tokens, usd, seconds."""
    return _frame([asdict(cost) for cost in Costs(memory.database).of_run(run)])


def _frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    frame = pd.DataFrame(rows)
    for column in frame.columns.intersection(_TIMES):
        frame[column] = pd.to_datetime(frame[column], unit="s", utc=True)
    return frame
