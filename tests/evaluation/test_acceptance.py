"""The acceptance rule: what it asks for next, and what it decides."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from slipstream.evaluation.acceptance import Cause, Evidence, Judgement, Need, Rule, Verdict, decide
from slipstream.evaluation.audits import Audit
from slipstream.evaluation.challenge import Acceptance, Tier
from slipstream.evaluation.gates import DocumentScore
from slipstream.evaluation.pairs import Pair, Stage
from slipstream.evaluation.prompts import Split

RULE = Rule(Acceptance(audit_blocks=2), Tier.NEAR_LOSSLESS, delta=0.003, num_documents=3)


def pairs(stage: Stage, log_ratios: Sequence[float]) -> list[Pair]:
    return [
        Pair(stage, i, ("p", "q"), "ABBA", 100 * np.exp(r), 100) for i, r in enumerate(log_ratios)
    ]


def scores(rise: float = 0.0, kl: float = 0.001, matches: int = 100) -> list[DocumentScore]:
    return [DocumentScore(f"d{i}", 100, 100 * (1 + rise), 100, 100 * kl, matches) for i in range(3)]


def audits(stage: Stage, *, regret: float = 0.0, contradictions: int = 0) -> list[Audit]:
    """Two audited blocks of 100 tokens each; `regret` is per token."""
    return [
        Audit(stage, i, 0, 100, 100 - (regret > 0), None, 100 * regret, regret, contradictions, 0.1)
        for i in range(2)
    ]


def noisy(mean: float, sd: float, count: int) -> list[float]:
    """`count` numbers with exactly this mean and standard deviation."""
    raw = np.random.default_rng(0).normal(size=count)
    return list(mean + sd * (raw - raw.mean()) / raw.std(ddof=1))


GAIN = [
    *pairs(Stage.SCREEN, [0.1, 0.1, 0.1]),
    *pairs(Stage.TEST, noisy(0.1, 0.02, 8)),
]
CONFIRMED = [*GAIN, *pairs(Stage.CONFIRM, noisy(0.05, 0.01, 12))]
BOTH = {Split.PUBLIC: scores(), Split.HELD_OUT: scores()}
TESTED = audits(Stage.TEST)
AUDITED = [*TESTED, *audits(Stage.CONFIRM)]


@pytest.mark.parametrize(
    ("evidence", "need"),
    [
        (Evidence(), Need(stage=Stage.SCREEN, count=3)),
        (Evidence(pairs(Stage.SCREEN, [0.1, 0.1])), Need(stage=Stage.SCREEN, count=3)),
        (Evidence(pairs(Stage.SCREEN, [0.1] * 3)), Need(split=Split.PUBLIC)),
        (Evidence(GAIN[:3], {Split.PUBLIC: scores()}), Need(stage=Stage.TEST, count=8)),
        (Evidence(GAIN, {Split.PUBLIC: scores()}), Need(audit=Stage.TEST, count=2)),
        (Evidence(GAIN, {Split.PUBLIC: scores()}, TESTED), Need(split=Split.HELD_OUT)),
        (Evidence(GAIN, BOTH, TESTED), Need(stage=Stage.CONFIRM, count=12)),
        (Evidence(CONFIRMED, BOTH, TESTED), Need(audit=Stage.CONFIRM, count=2)),
    ],
)
def test_asks_for_the_next_stage(evidence: Evidence, need: Need) -> None:
    assert decide(evidence, RULE) == need


def judged(evidence: Evidence, rule: Rule = RULE) -> Judgement:
    decision = decide(evidence, rule)
    assert isinstance(decision, Judgement)
    return decision


def test_confirmed_gain_is_kept_and_only_confirmation_is_reported() -> None:
    judgement = judged(Evidence(CONFIRMED, BOTH, AUDITED))
    assert (judgement.verdict, judgement.cause) == (Verdict.KEPT, Cause.GAIN)
    assert judgement.gain is not None
    assert judgement.gain.mean == pytest.approx(0.05)  # not the 0.1 that was tested
    assert judgement.gain.num_pairs == 12


def test_no_gain_on_screen_is_rejected() -> None:
    judgement = judged(Evidence(pairs(Stage.SCREEN, [0.02, -0.05, 0.0])))
    assert (judgement.verdict, judgement.cause) == (Verdict.REJECTED, Cause.NO_GAIN)


@pytest.mark.parametrize("bad", [{"rise": 0.02}, {"kl": 0.02}, {"matches": 90}])
@pytest.mark.parametrize("split", list(Split))
def test_quality_is_rejected_on_either_half(bad: dict[str, float], split: Split) -> None:
    quality = {**BOTH, split: scores(**bad)}  # type: ignore[arg-type]
    judgement = judged(Evidence(GAIN, quality, TESTED))
    assert (judgement.verdict, judgement.cause) == (Verdict.REJECTED, Cause.QUALITY)
    assert str(split) in judgement.reason


def test_bound_decides_not_the_mean() -> None:
    """A mean rise of 0.9 % passes only if the documents agree about it."""
    agreeing = scores(rise=0.009)
    assert isinstance(decide(Evidence(GAIN[:3], {Split.PUBLIC: agreeing}), RULE), Need)
    split = [scores(rise=r)[0] for r in (-0.06, 0.0, 0.087)]
    assert judged(Evidence(GAIN[:3], {Split.PUBLIC: split})).cause is Cause.QUALITY


def test_small_but_certain_loss_of_interest_is_rejected() -> None:
    evidence = Evidence(
        [*GAIN[:3], *pairs(Stage.TEST, noisy(0.001, 0.0005, 8))], {Split.PUBLIC: scores()}
    )
    assert judged(evidence).cause is Cause.NO_GAIN


def test_noise_is_inconclusive_not_rejected() -> None:
    evidence = Evidence(
        [*GAIN[:3], *pairs(Stage.TEST, noisy(0.02, 0.05, 8))], {Split.PUBLIC: scores()}
    )
    judgement = judged(evidence)
    assert (judgement.verdict, judgement.cause) == (Verdict.INCONCLUSIVE, Cause.POWER)


def test_gain_below_the_noise_floor_is_not_kept() -> None:
    noisy_machine = Rule(
        Acceptance(audit_blocks=2), Tier.NEAR_LOSSLESS, delta=0.06, num_documents=3
    )
    assert judged(Evidence(CONFIRMED, BOTH, AUDITED), noisy_machine).verdict is not Verdict.KEPT


def test_confirmation_can_take_a_gain_back() -> None:
    unlucky = [*GAIN, *pairs(Stage.CONFIRM, noisy(-0.001, 0.01, 12))]
    assert judged(Evidence(unlucky, BOTH, AUDITED)).verdict is Verdict.REJECTED


def test_quality_is_not_asked_for_where_it_is_not_judged() -> None:
    speed_only = Rule(Acceptance(), Tier.CHALLENGE, delta=0.003, num_documents=0)
    assert decide(Evidence(GAIN), speed_only) == Need(stage=Stage.CONFIRM, count=12)
    assert judged(Evidence(CONFIRMED), speed_only).verdict is Verdict.KEPT


def test_promising_test_buys_pairs_and_each_look_has_its_share_of_p() -> None:
    promising = noisy(0.02, 0.022, 8)
    evidence = Evidence(
        [*GAIN[:3], *pairs(Stage.TEST, promising)], {Split.PUBLIC: scores()}, TESTED
    )
    assert evidence.gain(Stage.TEST).p_above() > RULE.level == pytest.approx(0.01 / 3)
    assert decide(evidence, RULE) == Need(stage=Stage.TEST, count=16)
    halfway = Evidence(
        [*GAIN[:3], *pairs(Stage.TEST, [*promising, 0.02])], {Split.PUBLIC: scores()}
    )
    assert decide(halfway, RULE) == Need(stage=Stage.TEST, count=16)  # as after an interruption
    bought = Evidence(
        [*GAIN[:3], *pairs(Stage.TEST, noisy(0.02, 0.022, 16))], {Split.PUBLIC: scores()}
    )
    assert decide(bought, RULE) == Need(audit=Stage.TEST, count=2)


def test_void_pairs_do_not_count() -> None:
    void = [replace(pair, void="a tenant", tps=1.0) for pair in GAIN[3:5]]
    evidence = Evidence([*GAIN[:3], *void, *GAIN[5:]], {Split.PUBLIC: scores()})
    assert decide(evidence, RULE) == Need(stage=Stage.TEST, count=8)
    assert evidence.gain(Stage.TEST).num_pairs == 6


def test_engine_that_contradicts_itself_is_invalid() -> None:
    caught = audits(Stage.TEST, contradictions=5)
    judgement = judged(Evidence(GAIN, {Split.PUBLIC: scores()}, caught))
    assert (judgement.verdict, judgement.cause) == (Verdict.INVALID, Cause.CONTRADICTION)
    assert "10 of 200 timed tokens" in judgement.reason
    one = [*audits(Stage.TEST, contradictions=1)]
    assert isinstance(decide(Evidence(GAIN, {Split.PUBLIC: scores()}, one), RULE), Need)


def test_timed_tokens_with_regret_are_rejected() -> None:
    caught = audits(Stage.TEST, regret=0.05)
    judgement = judged(Evidence(GAIN, {Split.PUBLIC: scores()}, caught))
    assert (judgement.verdict, judgement.cause) == (Verdict.REJECTED, Cause.QUALITY)
    assert "0.05" in judgement.reason


def test_exact_tier_wants_identical_greedy_tokens() -> None:
    exact = Rule(Acceptance(audit_blocks=2), Tier.EXACT, delta=0.003, num_documents=3)
    perfect = {Split.PUBLIC: scores(kl=0.0)}
    almost = audits(Stage.TEST, regret=0.0001)
    judgement = judged(Evidence(GAIN, perfect, almost), exact)
    assert judgement.cause is Cause.QUALITY
    assert "2 of 200 timed tokens are not the reference's greedy ones" in judgement.reason
    assert isinstance(decide(Evidence(GAIN, perfect, TESTED), exact), Need)


def test_noise_is_almost_never_kept() -> None:
    """2,000 candidates without a gain, 3 % noise: the rule keeps at most a handful."""
    rng = np.random.default_rng(5)
    rule = Rule(Acceptance(), Tier.CHALLENGE, delta=0.003, num_documents=0)
    kept = 0
    for _ in range(2000):
        measured: list[Pair] = []
        while isinstance(need := decide(Evidence(measured), rule), Need):
            assert need.stage is not None
            so_far = [pair for pair in measured if pair.stage is need.stage]
            more = pairs(need.stage, rng.normal(0, 0.03, need.count - len(so_far)))
            measured.extend(more)
        kept += need.verdict is Verdict.KEPT
    assert kept <= 3
