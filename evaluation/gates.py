"""Quality: how a variant's answers differ from the reference's, and what each tier allows.

PPL is exp(ΣNLL / Σtokens), weighted by tokens, on text that the reference wrote itself. KL is the
mean of KL(reference ‖ variant) over positions; top-1 is how often both would pick the same token,
where two tokens that bfloat16 can't tell apart in the reference's logits count as the same pick.
Each gate holds on the 95 % bound, bootstrapped over documents, not on the mean.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .challenge import Tier
from .statistics import bootstrap

BF16_STEP = 2.0**-8


@dataclass(frozen=True)
class DocumentScore:
    """One document scored: sums over its positions."""

    document: str
    num_tokens: int
    nll: float
    nll_reference: float
    kl: float
    top1_matches: int


@dataclass(frozen=True)
class QualityReport:
    """A variant against the reference, with the 95 % bounds that gates look at."""

    ppl: float
    ppl_reference: float
    ppl_rise: float
    ppl_rise_high: float
    kl: float
    kl_high: float
    top1: float
    top1_low: float
    num_tokens: int


@dataclass(frozen=True)
class Gate:
    """Upper bounds on relative PPL rise and KL, lower bound on top-1 agreement."""

    max_ppl_rise: float
    max_kl: float = math.inf
    min_top1: float = 0.0


GATES = {
    # Greedy identity is asked for along the reference's own text, not as equal strings: after one
    # near-tie two strings have nothing in common any more.
    Tier.EXACT: Gate(max_ppl_rise=0.001, min_top1=0.995),
    Tier.NEAR_LOSSLESS: Gate(max_ppl_rise=0.01, max_kl=0.01, min_top1=0.96),
    Tier.CHALLENGE: Gate(max_ppl_rise=0.05),
}


def score_document(
    document: str,
    tokens: Sequence[int],
    logits: NDArray[np.float32],
    reference: NDArray[np.float32],
) -> DocumentScore:
    """Score one document.

    Args:
        tokens: the reference's continuation, [num_tokens].
        logits: the variant's logits before each of those tokens, [num_tokens, vocab_size].
        reference: the reference's, same shape.
    """
    ours, theirs = log_softmax(logits), log_softmax(reference)
    rows = np.arange(len(tokens))
    return DocumentScore(
        document=document,
        num_tokens=len(tokens),
        nll=-float(ours[rows, list(tokens)].sum()),
        nll_reference=-float(theirs[rows, list(tokens)].sum()),
        kl=float((np.exp(theirs) * (theirs - ours)).sum()),
        top1_matches=int(_agrees(logits, reference).sum()),
    )


def _agrees(logits: NDArray[np.float32], reference: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Return for each position whether the variant's pick is the reference's, near-ties excepted.

    On text sampled at temperature 1 the two best tokens are often closer than one step of bfloat16
    (2⁻⁸ of their size). Plain bf16 decoding of the same checkpoint flips 2.5 % of picks there.
    """
    best = reference.max(axis=1)
    picked = reference[np.arange(len(reference)), logits.argmax(axis=1)]
    agrees: NDArray[np.bool_] = best - picked <= np.abs(best) * BF16_STEP
    return agrees


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return log probabilities of logits [num_tokens, vocab_size], computed in float64."""
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    wide -= np.log(np.exp(wide).sum(axis=1, keepdims=True))
    return wide


def report(scores: Sequence[DocumentScore]) -> QualityReport:
    """Sum up documents, with one-sided 95 % bounds bootstrapped over them."""
    rows = np.array(
        [[s.num_tokens, s.nll, s.nll_reference, s.kl, s.top1_matches] for s in scores], float
    )
    count, nll, nll_reference, kl, matches = rows.sum(axis=0).tolist()
    rises = bootstrap(rows, lambda sums: (sums[:, 1] - sums[:, 2]) / sums[:, 0])
    kls = bootstrap(rows, lambda sums: sums[:, 3] / sums[:, 0])
    agreements = bootstrap(rows, lambda sums: sums[:, 4] / sums[:, 0])
    return QualityReport(
        ppl=_exp(nll / count),
        ppl_reference=_exp(nll_reference / count),
        ppl_rise=_exp((nll - nll_reference) / count) - 1,
        ppl_rise_high=_exp(float(np.quantile(rises, 0.95))) - 1,
        kl=kl / count,
        kl_high=float(np.quantile(kls, 0.95)),
        top1=matches / count,
        top1_low=float(np.quantile(agreements, 0.05)),
        num_tokens=int(count),
    )


def _exp(nats: float) -> float:
    """Return e to the power of `nats`, at most 1e300: logits can be as absurd as float32 allows."""
    return math.exp(min(nats, 690.0))


def refusal(quality: QualityReport, tier: Tier) -> str | None:
    """Return which bound of the tier's gate fails and by how much, or None."""
    gate = GATES[tier]
    if quality.ppl_rise_high > gate.max_ppl_rise:
        return (
            f"PPL {quality.ppl_reference:.2f} → {quality.ppl:.2f}: rise up to "
            f"{quality.ppl_rise_high:+.2%}, {tier} allows {gate.max_ppl_rise:.1%}"
        )
    if quality.kl_high > gate.max_kl:
        return f"KL up to {quality.kl_high:.4f}, {tier} allows {gate.max_kl:g}"
    if quality.top1_low < gate.min_top1:
        return f"top-1 agreement from {quality.top1_low:.1%}, {tier} asks {gate.min_top1:.0%}"
    return None
