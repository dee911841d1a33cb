"""Audits: the very tokens of timed blocks, looked at twice.

The trusted reference rescores them: how often they are its own pick, where they first differ, and
their regret, log p(its best token) − log p(the emitted one), in nats. And the engine that emitted
them replays them through the door that quality is scored through, in a fresh process that never saw
the timed request: there it must pick the same tokens. An engine that is exact only when scored
contradicts itself here; one that decodes badly at both doors shows its regret.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .calibration import LogitNoise
from .challenge import Tier
from .gates import GATES, log_softmax
from .pairs import Stage
from .statistics import bootstrap

# Of all timed tokens. The noise is measured on a few documents, so now and then an honest engine
# meets a tie that is a little wider; a cheat contradicts itself all the time.
MAX_CONTRADICTIONS = 0.01


@dataclass(frozen=True)
class Audit:
    """One timed block of the candidate, audited.

    Attributes:
        block: 0 or 1, which of the pair's two.
        matches: tokens that are the reference's pick, near-ties at the noise floor included.
        first_divergence: position of the first token that isn't its exact arg-max, or None.
        regret: sum over tokens, nats.
        worst_regret: of a single token, nats.
        contradictions: tokens that the engine itself, replaying, would not have picked, near-ties
            at the noise floor excepted.
        kl: sum of KL(reference ‖ replay) over positions, nats.
    """

    stage: Stage
    index: int
    block: int
    num_tokens: int
    matches: int
    first_divergence: int | None
    regret: float
    worst_regret: float
    contradictions: int
    kl: float


def audit_block(
    stage: Stage,
    index: int,
    block: int,
    tokens: Sequence[int],
    replayed: NDArray[np.float32],
    reference: NDArray[np.float32],
    noise: LogitNoise,
) -> Audit:
    """Audit one block.

    Args:
        tokens: emitted when timed, [num_tokens].
        replayed: the engine's logits before each of them at the scoring door, [num_tokens, vocab].
        reference: the reference's, same shape.
        noise: how far honest computations of the same logits differ on this machine.
    """
    rows = np.arange(len(tokens))
    picked = list(tokens)
    theirs, ours = log_softmax(reference), log_softmax(replayed)
    regret = theirs.max(axis=1) - theirs[rows, picked]
    own_gap = replayed.max(axis=1) - replayed[rows, picked]
    differs = np.flatnonzero(regret > 0)
    return Audit(
        stage=stage,
        index=index,
        block=block,
        num_tokens=len(tokens),
        matches=int((regret <= noise.floor).sum()),
        first_divergence=int(differs[0]) if len(differs) else None,
        regret=float(regret.sum()),
        worst_regret=float(regret.max()),
        contradictions=int((own_gap > noise.rounding).sum()),
        kl=float((np.exp(theirs) * (theirs - ours)).sum()),
    )


def choose_blocks(
    seed: int, race: str, stage: Stage, num_pairs: int, count: int
) -> list[tuple[int, int]]:
    """Draw which timed blocks of a stage are audited: (pair index, block), without replacement."""
    rng = np.random.default_rng([seed, *f"audit-{stage}-{race}".encode()])
    picks = rng.permutation(2 * num_pairs)[:count]
    return sorted((int(pick) // 2, int(pick) % 2) for pick in picks)


@dataclass(frozen=True)
class AuditReport:
    """All audited blocks of an experiment together, per token."""

    num_tokens: int
    match_rate: float
    regret: float
    regret_high: float  # one-sided 95 % bound, bootstrapped over blocks
    contradictions: int
    kl: float
    kl_high: float


def report_audits(audits: Sequence[Audit]) -> AuditReport:
    """Sum up audited blocks."""
    rows = np.array(
        [[a.num_tokens, a.matches, a.regret, a.contradictions, a.kl] for a in audits], float
    )
    count, matches, regret, contradictions, kl = rows.sum(axis=0).tolist()
    regrets = bootstrap(rows, lambda sums: sums[:, 2] / sums[:, 0])
    kls = bootstrap(rows, lambda sums: sums[:, 4] / sums[:, 0])
    return AuditReport(
        num_tokens=int(count),
        match_rate=matches / count,
        regret=regret / count,
        regret_high=float(np.quantile(regrets, 0.95)),
        contradictions=int(contradictions),
        kl=kl / count,
        kl_high=float(np.quantile(kls, 0.95)),
    )


def contradiction(found: AuditReport) -> str | None:
    """Return how the engine contradicts itself, or None."""
    if found.contradictions <= max(1.0, MAX_CONTRADICTIONS * found.num_tokens):
        return None
    return (
        f"{found.contradictions} of {found.num_tokens} timed tokens are not what the engine picks "
        "when it is scored: it decodes differently when timed"
    )


# Nats per token that greedy decoding may fall short of the reference. Plain bf16 decoding of the
# same checkpoint has 0.001 to 0.002. The challenge's 5 % of perplexity are 0.049 nats.
MAX_REGRET = {Tier.EXACT: 0.01, Tier.NEAR_LOSSLESS: 0.01, Tier.CHALLENGE: 0.049}


def audit_refusal(found: AuditReport, tier: Tier) -> str | None:
    """Return which bound of the tier the timed tokens miss, or None."""
    if tier is Tier.EXACT and found.match_rate < 1:
        wrong = round((1 - found.match_rate) * found.num_tokens)
        return f"{wrong} of {found.num_tokens} timed tokens are not the reference's greedy ones"
    limit = MAX_REGRET[tier]
    if found.regret_high > limit:
        return (
            f"timed tokens fall short of the reference's by up to {found.regret_high:.4f} nats "
            f"each, {tier} allows {limit:g}"
        )
    if found.kl_high > GATES[tier].max_kl:
        return f"KL on timed tokens up to {found.kl_high:.4f}, {tier} allows {GATES[tier].max_kl:g}"
    return None
