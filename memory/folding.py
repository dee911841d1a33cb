"""How one judged experiment changes a ledger entry, or what is known of an agent's predictions.

Pure functions on rows. Folding the same experiments in gives the same entry in whatever order they
come, so entries can be kept bit by bit and made anew at once.
"""

import math
from collections.abc import Mapping
from typing import Any

from slipstream.evaluation.acceptance import Cause

_Row = Mapping[Any, Any]
_MAX_EVIDENCE = 10

LEDGER_KEY = ("lever", "value", "family", "machine")
_CLASSES = {
    Cause.GAIN: "kept",
    Cause.START: "kept",
    Cause.NO_GAIN: "no_gain",
    Cause.QUALITY: "quality",
    Cause.CONTRADICTION: "quality",
    Cause.ENGINE: "failed",
    Cause.POWER: "undecided",
    Cause.BUDGET: "undecided",
}
_RESTS_ON_FIGURES = (Cause.GAIN, Cause.NO_GAIN, Cause.QUALITY, Cause.CONTRADICTION)
NOT_RUN = (  # where it counts
    *(Cause.CLAIMED, Cause.EXPOSED, Cause.CODER, Cause.REFUSED, Cause.VETO),
    *(Cause.SCREENED, Cause.UNREACHED),
)
_COUNTS = ("kept", "no_gain", "quality", "failed", "undecided")


def fold_ledger(entry: _Row | None, judged: _Row) -> dict[str, Any]:
    """Return a ledger entry with one more judged experiment in it; their order doesn't matter."""
    folded: dict[str, Any] = {name: judged[name] for name in LEDGER_KEY}
    folded |= {name: entry[name] if entry else 0 for name in _COUNTS}
    outcome = _CLASSES[Cause(judged["cause"])]
    folded[outcome] += 1
    now, best = _effect(judged, kept=outcome == "kept"), _best_effect(entry)
    better = max(best, now, key=lambda e: (e["best_gain"] is not None, e["best_kept"], _gain(e)))
    folded |= better
    refuted = entry["refuted_tps"] if entry else None
    if outcome == "no_gain" and judged["tps"] and judged["gain"] is not None:
        refuted = max(refuted or 0.0, judged["tps"] / math.exp(judged["gain"]))
    newer = entry is None or _when(judged) >= (entry["last_seen"], entry["last_experiment"])
    told = judged if newer or entry is None else entry
    evidence = [*(entry["evidence"] if entry else ()), [judged["decided_at"], judged["id"]]]
    return folded | {
        "refuted_tps": refuted,
        "mechanism": told["mechanism"] or "",
        "reopen": told["reopen"] or "",
        "evidence": sorted(evidence)[-_MAX_EVIDENCE:],
        "last_experiment": judged["id"] if newer or entry is None else entry["last_experiment"],
        "last_seen": judged["decided_at"] if newer or entry is None else entry["last_seen"],
    }


def was_tried(judged: _Row) -> bool:
    """Whether a lever was pulled and judged on its own.

    It wasn't at a start, nor where somebody else was at it already, nor where there was no sandbox
    to run it in, nor where the same tree had been judged before: such a verdict is a copy, without
    figures.
    """
    is_copy = judged["cause"] in _RESTS_ON_FIGURES and judged["gain"] is None
    return judged["lever"] is not None and judged["cause"] not in NOT_RUN and not is_copy


def _effect(judged: _Row, *, kept: bool) -> dict[str, Any]:
    measured = is_measured(judged)
    return {
        "best_kept": kept,
        "best_gain": judged["gain"] if measured else None,
        "best_stderr": judged["gain_stderr"] if measured else None,
        "best_pairs": (judged["num_pairs"] or 0) if measured else 0,
        "best_experiment": judged["id"] if measured else None,
    }


def _best_effect(entry: _Row | None) -> dict[str, Any]:
    nothing = {"best_kept": False, "best_gain": None, "best_stderr": None, "best_pairs": 0}
    nothing |= {"best_experiment": None}
    return nothing if entry is None else {name: entry[name] for name in nothing}


def _gain(effect: _Row) -> float:
    gain: float | None = effect["best_gain"]
    return -math.inf if gain is None else gain


def _when(judged: _Row) -> tuple[float, str]:
    return judged["decided_at"], judged["id"]


def num_trials(entry: _Row | None) -> int:
    """Return how many experiments an entry rests on."""
    return sum(entry[name] for name in _COUNTS) if entry else 0


CALIBRATION_KEY = ("agent", "lever", "family", "machine")


def fold_calibration(entry: _Row | None, judged: _Row) -> dict[str, Any]:
    """Return a calibration entry with one more measured prediction in it."""
    prior = judged["prior_gain"]
    predicted, measured = math.log1p(judged["predicted_gain"]), judged["gain"]
    before = entry or {"count": 0, "predicted": 0.0, "measured": 0.0, "squared_error": 0.0}
    return {name: judged[name] for name in CALIBRATION_KEY} | {
        "count": before["count"] + 1,
        "predicted": before["predicted"] + (predicted if prior is None else math.log1p(prior)),
        "measured": before["measured"] + measured,
        "squared_error": before["squared_error"] + (measured - predicted) ** 2,
    }


def is_measured(judged: _Row) -> bool:
    """Whether a verdict rests on a measured gain that says something about the lever."""
    told = Cause(judged["cause"]) in (Cause.GAIN, Cause.NO_GAIN, Cause.POWER)
    return told and judged["gain"] is not None
