"""What memory hands out: frozen values, safe to keep after the database is closed."""

import math
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from slipstream.evaluation.acceptance import Cause, Verdict
from slipstream.evaluation.statistics import Estimate


class RunState(StrEnum):
    """Where a run stands."""

    RUNNING = "running"
    INTERRUPTED = "interrupted"
    FINISHED = "finished"


@dataclass(frozen=True)
class Run:
    """One launch of the loop.

    Attributes:
        delta: noise floor of the latest A/A test, as a log ratio.
        calibrations: how many A/A tests were done.
        calibrated_at: when the latest one ended; it expires.
        family: the model's, as its config calls it; empty until the model was read.
        agents: how its agents were asked for; empty for those that need no key.
        budget_usd: what its models and jobs may cost; None for no limit.
        parallel: experiments in flight at most.
        executor: where it measures, as it was asked for; empty for this machine.
    """

    id: str
    challenge: str
    rules: dict[str, Any]
    machine: str
    machine_label: str
    seed: int
    state: RunState
    budget_minutes: float
    budget_experiments: int
    spent_s: float
    unsafe: bool
    delta: float | None
    bandwidth_gbps: float | None
    started_at: float
    calibrations: int = 0
    calibrated_at: float | None = None
    family: str = ""
    agents: dict[str, Any] = field(default_factory=dict)
    budget_usd: float | None = None
    parallel: int = 1
    executor: str = ""


@dataclass(frozen=True)
class Rung:
    """One rung of the ladder that an experiment has climbed, or not.

    Attributes:
        outcome: passed, refused or skipped.
        usd: what it cost where that is known.
    """

    experiment: str
    rung: str
    outcome: str
    reason: str
    wall_s: float
    climbed_at: float
    usd: float | None = None


@dataclass(frozen=True)
class Variant:
    """One engine tree with its settings, by content hash."""

    id: str
    parent: str | None
    engine: str
    settings: dict[str, str]
    run: str
    created_at: float


@dataclass(frozen=True)
class Hypothesis:
    """ "Lever or edit X on parent P will give +Y % because Z", written before measuring.

    Attributes:
        lever: name of the lever, several joined by "+".
        settings: all lever settings of the variant that it asks for.
        target: what it changes: `lever=value`, or the file that it edits.
        predicted_gain: expected speed ratio minus one.
        prior_gain: the same before it was corrected by experience; None if it wasn't.
        risk: what it may break, in words.
        falsifier: what would show that its mechanism is not the one.
    """

    id: str
    run: str
    round: int
    agent: str
    parent: str
    lever: str
    settings: dict[str, str]
    mechanism: str
    predicted_gain: float
    created_at: float
    target: str = ""
    prior_gain: float | None = None
    risk: str = ""
    falsifier: str = ""


REMATCH = "rematch"  # the lever of a hypothesis that asks for a race and changes nothing
EDIT = "edit"  # the lever of a hypothesis that changes source


def is_edit(hypothesis: Hypothesis) -> bool:
    """Whether a hypothesis asks for source; one that only sets levers needs nobody to write it."""
    return hypothesis.lever.split("+")[0] == EDIT


@dataclass(frozen=True)
class Experiment:
    """A hypothesis carried through, with its verdict once there is one."""

    id: str
    run: str
    hypothesis: str | None
    variant: str
    rival: str
    started_at: float
    verdict: Verdict | None = None
    cause: Cause | None = None
    reason: str = ""
    gain: float | None = None
    gain_stderr: float | None = None
    num_pairs: int | None = None
    tps: float | None = None
    ppl: float | None = None
    ppl_rise: float | None = None
    ppl_rise_high: float | None = None
    kl: float | None = None
    top1: float | None = None
    log: str | None = None
    decided_at: float | None = None

    @property
    def estimate(self) -> Estimate | None:
        """The gain over the rival as it was judged."""
        if self.gain is None:
            return None
        stderr = math.inf if self.gain_stderr is None else self.gain_stderr
        return Estimate(self.gain, stderr, self.num_pairs or 0)


@dataclass(frozen=True)
class Observation:
    """What a benchmarker looked at besides the verdict.

    Attributes:
        kind: "profile", "repeats" or "ablation".
        subject: what was looked at: a variant, or what was left out.
        text: the figures in words.
    """

    id: str
    experiment: str
    kind: str
    subject: str
    text: str
    figures: dict[str, Any]
    seen_at: float


@dataclass(frozen=True)
class Finding:
    """What was learned: lever, prediction against measurement, mechanism, re-open condition."""

    experiment: str
    lever: str
    value: str
    predicted_gain: float
    mechanism: str
    reopen: str
    unsafe: bool
    learned_at: float
