"""The three roles as protocols, and what passes between them.

A backend is any object with the right method: the offline ones here need no key, language models
and outside commands come beside them, and a user's own planner is ten lines.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from slipstream.evaluation.acceptance import Cause, Judgement, Verdict
from slipstream.kernels.census import ModelShape
from slipstream.kernels.levers import Machine
from slipstream.kernels.variants import Tree
from slipstream.memory.ledger import Correction, LedgerEntry
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
class Island:
    """A lineage that a planner may go on from instead of the champion.

    Attributes:
        best: its fastest kept variant, with its settings.
        speedup: of `best` over the champion, as a ratio; below 1.
        trials: how many of its variants were judged.
    """

    best: str
    settings: dict[str, str]
    speedup: float
    trials: int


@dataclass(frozen=True)
class Briefing:
    """Everything that a planner may look at.

    Attributes:
        trials: every judged experiment on this engine, challenge and machine, of any run.
        planned: settings of this run's hypotheses so far, judged or refused on the way.
        claimed: settings of what other runs are measuring now.
        corrections: how this planner's predictions came true so far, by lever.
        ledger: what is known of levers on this family of models and kind of machine.
        islands: lineages with a variant that was kept, apart from the champion's.
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
    claimed: tuple[dict[str, str], ...] = ()
    corrections: Mapping[str, Correction] = field(default_factory=dict)
    ledger: tuple[LedgerEntry, ...] = ()
    islands: tuple[Island, ...] = ()


@dataclass(frozen=True)
class Proposal:
    """A hypothesis before it has a name.

    Attributes:
        predicted_gain: over the champion, corrected by how such predictions came true.
        prior_gain: the same before that correction; what the next correction is learned from.
        parent: the variant to start from; the champion if None.
        target: what it changes; made from the settings if empty.
    """

    lever: str
    settings: dict[str, str]
    mechanism: str
    predicted_gain: float
    prior_gain: float | None = None
    parent: str | None = None
    target: str = ""


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
