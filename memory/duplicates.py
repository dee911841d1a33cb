"""Has that been tried? A hypothesis close to one that was refuted is refused, with the evidence.

Close means: the same levers set to the same values, or for an edit the same target with a mechanism
told in much the same words. The refutation's own condition for another try comes first.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rapidfuzz import fuzz
from sqlalchemy import select

from slipstream.evaluation.acceptance import Cause, Verdict
from slipstream.evaluation.challenge import Tier

from .queries import TABLES
from .records import EDIT
from .store import Memory

REOPEN_SPEEDUP = 1.5  # what had no gain is worth another try once the rest got this much faster
ALIKE = 80.0  # of 100, by rapidfuzz' token set ratio; other ideas on one target stay below 75
_LOOK_AT = 50
_STRICTNESS = (Tier.EXACT, Tier.NEAR_LOSSLESS, Tier.CHALLENGE)
_HYPOTHESES, _EXPERIMENTS = TABLES["hypotheses"], TABLES["experiments"]
_VERDICTS, _RUNS, _VARIANTS = TABLES["verdicts"], TABLES["runs"], TABLES["variants"]


@dataclass(frozen=True)
class Idea:
    """What a hypothesis comes down to, and where it would be tried.

    Attributes:
        target: `lever=value` of everything that changes, or the file to edit.
        engine: hash of the source that it starts from.
        champion_tps: output tokens per second to beat.
    """

    lever: str
    target: str
    mechanism: str
    challenge: str
    machine: str
    tier: Tier
    engine: str
    champion_tps: float


@dataclass(frozen=True)
class Refutation:
    """An earlier experiment that speaks against an idea."""

    experiment: str
    verdict: Verdict
    reason: str
    alike: float


def find_refutation(memory: Memory, idea: Idea) -> Refutation | None:
    """Return the latest experiment that refutes `idea` and isn't re-opened, or None.

    An idea that was kept after it had been refuted is contested, and may be tried.
    """
    query = (
        select(
            _EXPERIMENTS.c.id,
            _HYPOTHESES.c.mechanism,
            *(_VERDICTS.c[name] for name in ("verdict", "cause", "reason", "gain", "tps")),
            _RUNS.c.rules["tier"].as_string().label("tier"),
            _VARIANTS.c.engine,
        )
        .select_from(_HYPOTHESES)
        .join(_EXPERIMENTS, _EXPERIMENTS.c.hypothesis == _HYPOTHESES.c.id)
        .join(_VERDICTS, _VERDICTS.c.experiment == _EXPERIMENTS.c.id)
        .join(_RUNS, _RUNS.c.id == _EXPERIMENTS.c.run)
        .join(_VARIANTS, _VARIANTS.c.id == _HYPOTHESES.c.parent)
        .where(
            _HYPOTHESES.c.lever == idea.lever,
            _HYPOTHESES.c.target == idea.target,
            _RUNS.c.challenge == idea.challenge,
            _RUNS.c.machine == idea.machine,
        )
        .order_by(_HYPOTHESES.c.created_at.desc())
        .limit(_LOOK_AT)
    )
    rows = memory.database.read(lambda connection: connection.execute(query).mappings().all())
    for row in rows:
        alike = likeness(idea, row["mechanism"])
        if alike < ALIKE:
            continue
        if row["verdict"] == Verdict.KEPT:
            return None
        if row["verdict"] != Verdict.INCONCLUSIVE and not is_reopened(idea, row):
            return Refutation(row["id"], Verdict(row["verdict"]), row["reason"], alike)
    return None


def likeness(idea: Idea, mechanism: str) -> float:
    """Return how alike two ideas with the same lever and target are, 0 to 100."""
    if idea.lever.split("+")[0] != EDIT and "=" in idea.target:  # it says all: levers and values
        return 100.0
    return float(fuzz.token_set_ratio(_words(idea.mechanism), _words(mechanism)))


def is_reopened(idea: Idea, refuted: Mapping[Any, Any]) -> bool:
    """Whether the condition for another try holds.

    Args:
        refuted: cause, gain, tps, tier and engine of the experiment that spoke against it.
    """
    match Cause(refuted["cause"]):
        case Cause.NO_GAIN:  # its share may have grown
            if refuted["gain"] is None or not refuted["tps"]:
                return False
            champion_then = refuted["tps"] / math.exp(refuted["gain"])
            return idea.champion_tps >= REOPEN_SPEEDUP * float(champion_then)
        case Cause.QUALITY:
            then, now = (_STRICTNESS.index(Tier(t)) for t in (refuted["tier"], idea.tier))
            return now > then
        case Cause.ENGINE | Cause.CONTRADICTION:
            return bool(refuted["engine"] != idea.engine)
        case Cause.EXPOSED:  # it never ran; here may be a sandbox
            return True
    return True


def _words(text: str) -> str:
    """Return the text without its figures, which differ from time to time."""
    return re.sub(r"[-+±]?\d[\d.,]*%?", " ", text).lower()
