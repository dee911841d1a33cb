"""`slipstream verify`: a variant's result reproduced from its hash, on new prompts."""

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from slipstream.evaluation.audits import AuditReport, audit_refusal, contradiction, report_audits
from slipstream.evaluation.challenge import Challenge, load_challenge
from slipstream.evaluation.conditions import disturbance
from slipstream.evaluation.evaluator import Evaluator
from slipstream.evaluation.gates import QualityReport, refusal, report
from slipstream.evaluation.hardware import detect_hardware
from slipstream.evaluation.home import data_dir
from slipstream.evaluation.pairs import Pair, Stage
from slipstream.evaluation.prompts import Split
from slipstream.evaluation.statistics import Estimate, estimate, geometric_mean
from slipstream.kernels.variants import VariantStore
from slipstream.memory.leaderboard import speedups
from slipstream.memory.store import Memory

from .apart import bench_apart
from .lineage import tree_of

_CHALLENGE_BAND = 0.05  # the Gemma challenge called a result valid within 5 % of the report
_MAX_SHORTFALL = 0.10  # valid means: at most this much slower than claimed, with 95 % confidence


class Outcome(StrEnum):
    """What a verification came to."""

    VALID = "valid"
    INVALID = "invalid"
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True)
class Verification:
    """A claim beside what was found; `audits` and `quality` are None where nothing is judged.

    Attributes:
        claimed: the speed-up over the baseline on record for this machine, or None.
        speedup: the same, measured now.
        within_5_percent: the Gemma challenge's own rule, shown beside; it decides nothing.
    """

    variant: str
    outcome: Outcome
    reason: str
    claimed: Estimate | None
    speedup: Estimate
    tps: float
    within_5_percent: bool | None
    quality: QualityReport | None
    audits: AuditReport | None


def reproduce(
    memory: Memory,
    variant: str,
    challenge_name: str,
    *,
    fresh_seed: bool,
    unsafe_local: bool = False,
    say: Callable[[str], None],
) -> Verification:
    """Measure speed, quality and audits of a variant anew and compare with what is on record.

    Args:
        fresh_seed: let the reference write new held-out documents too (a minute or more).
        unsafe_local: run changed source even where there is no sandbox.

    Raises:
        SlipstreamError: unknown variant or challenge, or no sandbox for changed source.
    """
    challenge = load_challenge(challenge_name)
    name = memory.variant(variant).id
    store = VariantStore(data_dir() / "variants")
    tree_of(memory, store, name)
    salt = secrets.token_hex(8) if fresh_seed else ""
    opened = bench_apart(
        f"verify {variant}", challenge, store, say, salt=salt, unsafe_local=unsafe_local
    )
    with opened as bench:
        pairs, quality, audits = _measure(bench.evaluator, challenge, name, say)
    claimed = _claim(memory, challenge, name)
    speedup = estimate([pair.log_ratio for pair in pairs])
    outcome, reason = conclude(challenge, claimed, speedup, quality, audits)
    band = None if claimed is None else abs(speedup.ratio / claimed.ratio - 1) <= _CHALLENGE_BAND
    tps = geometric_mean([pair.tps for pair in pairs])
    return Verification(name, outcome, reason, claimed, speedup, tps, band, quality, audits)


def _measure(
    evaluator: Evaluator, challenge: Challenge, name: str, say: Callable[[str], None]
) -> tuple[list[Pair], QualityReport | None, AuditReport | None]:
    pairs: list[Pair] = []
    rules = challenge.acceptance
    todo = dict.fromkeys(range(rules.confirm_pairs), 0)
    for pair in evaluator.pairs(name, challenge.baseline, Stage.BASELINE, todo):
        note = disturbance(pair.conditions, rules.max_disturbance)
        say(f"pair {pair.index + 1}: {pair.tps:.1f} against {pair.tps_rival:.1f} {note}".rstrip())
        if not pair.void:
            pairs.append(pair)
    if not challenge.quality.enabled:
        return pairs, None, None
    audits = list(evaluator.audits(name, pairs, rules.audit_blocks, ()))
    say(f"audited {len(audits)} timed blocks")
    scores = list(evaluator.scores(name, Split.HELD_OUT, ()))
    say(f"scored {len(scores)} held-out documents")
    return pairs, report(scores), report_audits(audits)


def _claim(memory: Memory, challenge: Challenge, name: str) -> Estimate | None:
    return speedups(memory, challenge.name, detect_hardware().id).get(name)


def conclude(
    challenge: Challenge,
    claimed: Estimate | None,
    speedup: Estimate,
    quality: QualityReport | None,
    audits: AuditReport | None,
) -> tuple[Outcome, str]:
    """Return the outcome: the intervals decide about speed, the tier's gates about quality."""
    for reason in (
        contradiction(audits) if audits else None,
        audit_refusal(audits, challenge.tier) if audits else None,
        refusal(quality, challenge.tier) if quality else None,
    ):
        if reason:
            return Outcome.INVALID, reason
    low, high = speedup.interval()
    seen = f"{speedup.ratio:.2f}× ({low:.2f} to {high:.2f})"
    if claimed is None:
        return Outcome.INCONCLUSIVE, f"{seen} found; no speed-up is on record for this machine"
    change = speedup + Estimate(-claimed.mean, claimed.stderr, claimed.num_pairs)
    least, most = change.interval()
    figures = f"{seen} found, {claimed.ratio:.2f}× on record"
    if most < 1:
        return Outcome.INVALID, f"slower than claimed: {figures}"
    if least < 1 - _MAX_SHORTFALL:
        return Outcome.INCONCLUSIVE, f"too noisy to tell: {figures}"
    return Outcome.VALID, figures
