"""Quality figures are what their definitions say."""

import numpy as np
import pytest
import torch

from slipstream.evaluation.challenge import Tier
from slipstream.evaluation.gates import DocumentScore, refusal, report, score_document


def test_scores_agree_with_torch() -> None:
    rng = np.random.default_rng(0)
    ours, theirs = rng.normal(size=(2, 5, 50)).astype(np.float32) * 3
    tokens = [1, 7, 49, 0, 3]
    score = score_document("d", tokens, ours, theirs)
    target = torch.tensor(tokens)
    nll = torch.nn.functional.cross_entropy(torch.tensor(ours).double(), target, reduction="sum")
    kl = torch.nn.functional.kl_div(
        torch.tensor(ours).double().log_softmax(-1),
        torch.tensor(theirs).double().log_softmax(-1),
        log_target=True,
        reduction="sum",
    )
    assert score.nll == pytest.approx(float(nll))
    assert score.kl == pytest.approx(float(kl))
    assert score.top1_matches == int((ours.argmax(1) == theirs.argmax(1)).sum())


def test_near_ties_of_the_reference_count_as_agreement() -> None:
    reference = np.array([[20.0, 19.95, 0.0], [20.0, 19.8, 0.0]], np.float32)
    flipped = reference[:, [1, 0, 2]]
    assert score_document("d", [0, 0], flipped, reference).top1_matches == 1


def test_identical_logits_score_perfectly() -> None:
    logits = np.random.default_rng(1).normal(size=(4, 9)).astype(np.float32)
    score = score_document("d", [0, 1, 2, 3], logits, logits)
    assert score.kl == pytest.approx(0.0, abs=1e-12)
    assert score.nll == score.nll_reference
    assert score.top1_matches == 4


def test_ppl_is_weighted_by_tokens() -> None:
    short = DocumentScore("a", 1, 10.0, 10.0, 0.0, 1)
    long = DocumentScore("b", 99, 99.0, 99.0, 0.0, 99)
    assert report([short, long]).ppl == pytest.approx(np.exp(109 / 100))


@pytest.mark.parametrize(
    ("rise", "accepted"),
    [
        (0.0005, {Tier.EXACT, Tier.NEAR_LOSSLESS, Tier.CHALLENGE}),
        (0.005, {Tier.NEAR_LOSSLESS, Tier.CHALLENGE}),
        (0.04, {Tier.CHALLENGE}),
        (0.06, set()),
    ],
)
def test_tiers_allow_what_they_say(rise: float, accepted: set[Tier]) -> None:
    nll = 100 * np.log1p(rise)
    quality = report([DocumentScore(str(i), 100, 100 + nll, 100.0, 0.0, 100) for i in range(4)])
    assert quality.ppl_rise == pytest.approx(rise)
    assert {tier for tier in Tier if refusal(quality, tier) is None} == accepted
