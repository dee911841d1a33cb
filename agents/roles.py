"""The three roles as protocols, and what passes between them.

A backend is any object with the right method: the offline ones here need no key, language models
and outside commands come beside them, and a user's own planner is ten lines.
"""

from dataclasses import dataclass
from typing import Protocol

from slipstream.evaluation.acceptance import Cause, Judgement, Verdict
from slipstream.kernels.census import ModelShape
from slipstream.kernels.levers import Machine
from slipstream.kernels.variants import Tree
from slipstream.memory.records import Hypothesis


@dataclass(frozen=True)
class Trial:
    """One judged experiment, as a planner sees it.

    Attributes:
        settings: all levers of the variant.
        changed: the levers in which it differed from the champion that it raced.
        speed: log speed-up over the baseline; None if it never ran.
        ppl_excess: how far the bound on PPL rise lies above the tier's gate; ≤ 0 is feasible.
        rival_tps: the champion's speed at the time, in tokens per second.
    """

    settings: dict[str, str]
    changed: dict[str, str]
    verdict: Verdict
    cause: Cause
    speed: float | None
    ppl_excess: float
    rival_tps: float


@dataclass(frozen=True)
class Briefing:
    """Everything that a planner may look at.

    Attributes:
        trials: every judged experiment on this engine, challenge and machine, of any run.
        planned: settings of this run's hypotheses so far, judged or refused on the way.
    """

    challenge: str
    shape: ModelShape
    machine: Machine
    bandwidth_gbps: float
    champion: str
    champion_settings: dict[str, str]
    champion_tps: float
    trials: tuple[Trial, ...]
    planned: tuple[dict[str, str], ...]
    seed: int


@dataclass(frozen=True)
class Proposal:
    """A hypothesis before it has a name."""

    lever: str
    settings: dict[str, str]
    mechanism: str
    predicted_gain: float


@dataclass(frozen=True)
class Explanation:
    """Why an experiment came out as it did, and when it is worth another try."""

    mechanism: str
    reopen: str


class Planner(Protocol):
    """Decides what to try next."""

    name: str

    def plan(self, briefing: Briefing, count: int) -> list[Proposal]:
        """Return up to `count` proposals on the champion; none when nothing is left to try."""
        ...


class Coder(Protocol):
    """Turns a hypothesis into a variant's tree."""

    name: str

    def implement(self, hypothesis: Hypothesis, parent: Tree) -> Tree:
        """Return the tree that tests the hypothesis."""
        ...

    def repair(self, hypothesis: Hypothesis, tree: Tree, error: str) -> Tree | None:
        """Return a mended tree after `error`, or None to give up."""
        ...


class Benchmarker(Protocol):
    """Says what a result means; the numbers and the verdict are given."""

    name: str

    def explain(self, hypothesis: Hypothesis, judgement: Judgement) -> Explanation:
        """Return mechanism and re-open condition, tied to the figures."""
        ...
