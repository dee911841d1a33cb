"""The acceptance rule: the only place that says what "better" means.

`decide` is a pure function of what was measured so far. It answers with the next thing to measure
or with a verdict, so measuring can stop and go on at any pair, and judging a finished experiment
again gives the same verdict.

    screen    3 pairs; stop unless the mean is above zero
    quality   the public documents; stop if the tier's gate refuses
    test      8 pairs; one-sided paired p < 0.01 and mean ≥ δ
    audit     timed blocks of the test, rescored and replayed
    quality   the held-out documents
    confirm   12 new pairs, fresh processes, held-out prompts; the same test, and the only estimate
              that is reported
    audit     timed blocks of the confirmation

A test that is promising but not yet significant buys pairs: their number doubles, at most
`looks - 1` times, and each look gets its share of p (Bonferroni), so the level holds over all.
δ is the larger of `min_gain` and the machine's noise floor. Keeping the best number of many noisy
ones would promote noise; this rule, with its two independent tests, almost never does.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from .audits import Audit, audit_refusal, contradiction, report_audits
from .challenge import Acceptance, Tier
from .gates import DocumentScore, QualityReport, refusal, report
from .pairs import Pair, Stage
from .prompts import Split
from .statistics import Estimate, estimate, geometric_mean


class Verdict(StrEnum):
    """How an experiment ended."""

    KEPT = "kept"
    REJECTED = "rejected"
    INCONCLUSIVE = "inconclusive"
    INVALID = "invalid"
    FAILED = "failed"


class Cause(StrEnum):
    """What a verdict turned on."""

    GAIN = "gain"
    NO_GAIN = "no-gain"
    QUALITY = "quality"
    CONTRADICTION = "contradiction"  # timed tokens and scored logits are not one engine's
    POWER = "power"
    ENGINE = "engine"
    EXPOSED = "exposed"  # changed source, and no sandbox to run it in
    BUDGET = "budget"
    CLAIMED = "claimed"  # somebody else is measuring the same tree
    UNREACHED = "unreached"  # the machines that were to measure it ended before they had
    CODER = "coder"  # no variant came of the hypothesis: there is nothing to measure
    REFUSED = "refused"  # a person looked at the change and said no
    SCREENED = "screened"  # no faster here, so no machine was rented for it
    VETO = "veto"  # arithmetic says that it can't be faster: nothing was measured
    START = "start"  # the run's first champion, measured to have something to compare with


@dataclass(frozen=True)
class Evidence:
    """Everything measured for one experiment so far."""

    pairs: Sequence[Pair] = ()
    scores: Mapping[Split, Sequence[DocumentScore]] = field(default_factory=dict)
    audits: Sequence[Audit] = ()

    def counting(self, stage: Stage) -> list[Pair]:
        """Return the pairs of one stage that are not void."""
        return [pair for pair in self.pairs if pair.stage is stage and not pair.void]

    def num_void(self, stage: Stage, index: int) -> int:
        """Return how many attempts at one pair were void."""
        return sum(p.stage is stage and p.index == index and bool(p.void) for p in self.pairs)

    def log_ratios(self, stage: Stage) -> list[float]:
        """Return the paired log ratios of one stage."""
        return [pair.log_ratio for pair in self.counting(stage)]

    def gain(self, stage: Stage) -> Estimate:
        """Return the gain over the rival that one stage measured."""
        return estimate(self.log_ratios(stage))

    def tps(self, stage: Stage) -> float:
        """Return the candidate's output tokens per second, geometric mean over a stage's pairs."""
        return geometric_mean([pair.tps for pair in self.counting(stage)])


@dataclass(frozen=True)
class Need:
    """The next thing to measure: pairs of a stage, audits of its blocks, or documents of a split.

    Attributes:
        count: how many pairs, or audits, the stage shall have then.
    """

    stage: Stage | None = None
    count: int = 0
    audit: Stage | None = None
    split: Split | None = None


@dataclass(frozen=True)
class Judgement:
    """A verdict, why, and the figures it rests on."""

    verdict: Verdict
    cause: Cause
    reason: str
    gain: Estimate | None = None
    quality: QualityReport | None = None
    tps: float | None = None  # geometric mean over the pairs that `gain` rests on
    log: str = ""  # hash of the engine's stored log, if it failed


@dataclass(frozen=True)
class Rule:
    """What the decision depends on besides the evidence."""

    acceptance: Acceptance
    tier: Tier
    delta: float
    num_documents: int  # per split; 0 where quality is not judged

    def num_pairs(self, stage: Stage) -> int:
        """Return how many pairs a stage takes."""
        return {
            Stage.SCREEN: self.acceptance.screen_pairs,
            Stage.TEST: self.acceptance.test_pairs,
            Stage.CONFIRM: self.acceptance.confirm_pairs,
            Stage.NOISE: self.acceptance.noise_pairs,
            Stage.BASELINE: self.acceptance.baseline_pairs,
        }[stage]

    @property
    def level(self) -> float:
        """The p-value that each look at a test has to stay below."""
        return self.acceptance.p_value / self.acceptance.looks

    def last_look(self, stage: Stage) -> int:
        """Return how many pairs a test may take at most."""
        return int(self.num_pairs(stage) * 2 ** (self.acceptance.looks - 1))

    def look(self, stage: Stage, num_pairs: int) -> int:
        """Return the number of pairs at which a test with `num_pairs` so far is looked at next."""
        look = self.num_pairs(stage)
        while look < num_pairs:
            look *= 2
        return look


def decide(evidence: Evidence, rule: Rule) -> Need | Judgement:
    """Return what to measure next, or the verdict."""
    screened = evidence.gain(Stage.SCREEN)
    if screened.num_pairs < rule.num_pairs(Stage.SCREEN):
        return Need(stage=Stage.SCREEN, count=rule.num_pairs(Stage.SCREEN))
    if screened.mean <= 0:
        return Judgement(
            Verdict.REJECTED,
            Cause.NO_GAIN,
            f"no gain: {_percent(screened)} in {screened.num_pairs} screening pairs",
            screened,
            tps=evidence.tps(Stage.SCREEN),
        )
    if outcome := _quality(evidence, rule, Split.PUBLIC, Stage.SCREEN):
        return outcome
    if outcome := _speed(evidence, rule, Stage.TEST):
        return outcome
    if outcome := _audit(evidence, rule, Stage.TEST):
        return outcome
    if outcome := _quality(evidence, rule, Split.HELD_OUT, Stage.TEST):
        return outcome
    if outcome := _speed(evidence, rule, Stage.CONFIRM):
        return outcome
    if outcome := _audit(evidence, rule, Stage.CONFIRM):
        return outcome
    confirmed = evidence.gain(Stage.CONFIRM)
    return Judgement(
        Verdict.KEPT,
        Cause.GAIN,
        f"{_percent(confirmed)} over the champion in {confirmed.num_pairs} new pairs",
        confirmed,
        quality_report(evidence),
        evidence.tps(Stage.CONFIRM),
    )


def quality_report(evidence: Evidence) -> QualityReport | None:
    """Return the report over all scored documents: held-out ones if there are any."""
    for split in (Split.HELD_OUT, Split.PUBLIC):
        if evidence.scores.get(split):
            return report(evidence.scores[split])
    return None


def _quality(
    evidence: Evidence, rule: Rule, split: Split, so_far: Stage
) -> Need | Judgement | None:
    if rule.num_documents == 0:
        return None
    scores = evidence.scores.get(split, ())
    if len(scores) < rule.num_documents:
        return Need(split=split)
    quality = report(scores)
    reason = refusal(quality, rule.tier)
    if reason is None:
        return None
    return Judgement(
        Verdict.REJECTED,
        Cause.QUALITY,
        f"quality on {split} prompts: {reason}",
        evidence.gain(so_far),
        quality,
        evidence.tps(so_far),
    )


def _audit(evidence: Evidence, rule: Rule, stage: Stage) -> Need | Judgement | None:
    if rule.num_documents == 0:  # no reference to ask
        return None
    count = min(rule.acceptance.audit_blocks, 2 * len(evidence.counting(stage)))
    audits = [audit for audit in evidence.audits if audit.stage is stage]
    if len(audits) < count:
        return Need(audit=stage, count=count)
    if not audits:
        return None
    found = report_audits(audits)
    outcome = (evidence.gain(stage), quality_report(evidence), evidence.tps(stage))
    if reason := contradiction(found):
        return Judgement(Verdict.INVALID, Cause.CONTRADICTION, reason, *outcome)
    if reason := audit_refusal(found, rule.tier):
        return Judgement(Verdict.REJECTED, Cause.QUALITY, reason, *outcome)
    return None


def _speed(evidence: Evidence, rule: Rule, stage: Stage) -> Need | Judgement | None:
    gain = evidence.gain(stage)
    look = rule.look(stage, gain.num_pairs)
    if gain.num_pairs < look:
        return Need(stage=stage, count=look)
    p, level = gain.p_above(), rule.level
    if p < level and gain.mean >= rule.delta:
        return None
    quality, tps = quality_report(evidence), evidence.tps(stage)
    figures = f"{_percent(gain)} in {gain.num_pairs} {stage} pairs (p = {p:.2g})"
    # Rejected means shown to be too small; a wide interval that still holds a gain is not that.
    low_enough = gain.interval(0.90)[1] < 1 + max(rule.delta, 0.0)
    if low_enough or gain.mean <= 0:
        return Judgement(
            Verdict.REJECTED,
            Cause.NO_GAIN,
            f"no gain: {figures}, δ is {rule.delta:.2%}",
            gain,
            quality,
            tps,
        )
    last = rule.last_look(stage)
    if gain.num_pairs < last and gain.mean >= rule.delta and gain.at(last).p_above() < level:
        return Need(stage=stage, count=2 * look)
    return Judgement(
        Verdict.INCONCLUSIVE,
        Cause.POWER,
        f"too noisy to tell: {figures}, δ is {rule.delta:.2%}; more pairs would tell",
        gain,
        quality,
        tps,
    )


def _percent(gain: Estimate) -> str:
    low, high = gain.interval()
    return f"{gain.ratio - 1:+.1%} ({low - 1:+.1%} to {high - 1:+.1%})"
