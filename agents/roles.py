"""The three roles as protocols, and what passes between them.

A backend is any object with the right method: the offline ones here need no key, language models
and outside commands come beside them, and a user's own planner is ten lines.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from slipstream.evaluation.acceptance import Cause, Judgement, Verdict
from slipstream.evaluation.challenge import Challenge
from slipstream.evaluation.profiling import Profile
from slipstream.kernels.catalogue import SHIPPED, Catalogue
from slipstream.kernels.census import ModelShape
from slipstream.kernels.levers import Machine
from slipstream.kernels.variants import Tree
from slipstream.memory.leaderboard import Standing
from slipstream.memory.ledger import Correction, LedgerEntry
from slipstream.memory.records import Hypothesis, Observation
from slipstream.memory.search import Hit


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
class Quoted:
    """What somebody else said, and where it comes from."""

    source: str
    text: str


@dataclass(frozen=True)
class Left:
    """What is left of a run's budget; None is no limit."""

    minutes: float = math.inf
    experiments: int = 1
    usd: float | None = None


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
        tree: the champion's source.
        catalogue: the levers that its engine has.
        standings: the leaderboard's first, edited engines included.
        calibration: how all agents' predictions came true.
        posts: the latest on the board: what others said, data and no more.
        directions: what the researcher wants of this run, oldest first.
        refused: why this round's earlier proposals were refused.
        profile: takes the champion apart, which takes seconds; None where it can't be.
        search: full text over all findings.
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
    round: int = 0
    rules: Challenge | None = None
    tree: Tree | None = None
    catalogue: Catalogue = SHIPPED
    standings: tuple[Standing, ...] = ()
    calibration: tuple[Correction, ...] = ()
    posts: tuple[Quoted, ...] = ()
    directions: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    left: Left = field(default_factory=Left)
    profile: Callable[[], Profile | None] = lambda: None
    search: Callable[[str], list[Hit]] = lambda _: []


@dataclass(frozen=True)
class Proposal:
    """A hypothesis before it has a name.

    Attributes:
        predicted_gain: over the champion, corrected by how such predictions came true.
        prior_gain: the same before that correction; what the next correction is learned from.
        parent: the variant to start from; the champion if None.
        target: what it changes; made from the settings if empty.
        risk: what it may break.
        falsifier: what would show that its mechanism is not the one.
        agent: who proposes it, if not the planner by its own name.
    """

    lever: str
    settings: dict[str, str]
    mechanism: str
    predicted_gain: float
    prior_gain: float | None = None
    parent: str | None = None
    target: str = ""
    risk: str = ""
    falsifier: str = ""
    agent: str = ""


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


class CoderError(Exception):
    """A coder has no variant to show for a hypothesis; the text says why."""


class Workbench(Protocol):
    """What a coder may do with a tree besides writing it; all of it happens in the sandbox."""

    @property
    def facts(self) -> str:
        """The model, the machine, the workload and the gate, in words."""
        ...

    @property
    def left_s(self) -> float:
        """Seconds that the run can spare for this hypothesis."""
        ...

    def run(self, tree: Tree) -> str:
        """Let a tree decode a tiny input; return what went wrong, or nothing."""
        ...

    def check(self, tree: Tree) -> str:
        """Compare a tree with the reference on a few documents; return the figures in words."""
        ...

    def test(self, tree: Tree, kernel: str) -> str:
        """Compare a kernel of a tree, or "all", with plain arithmetic; return it in words."""
        ...


class Coder(Protocol):
    """Turns a hypothesis into a variant's tree."""

    name: str

    def implement(self, hypothesis: Hypothesis, parent: Tree, bench: Workbench) -> Tree:
        """Return the tree that tests the hypothesis.

        Raises:
            CoderError: none came of it.
        """
        ...

    def repair(
        self, hypothesis: Hypothesis, tree: Tree, error: str, bench: Workbench
    ) -> Tree | None:
        """Return a mended tree after `error`, or None to give up."""
        ...


@dataclass(frozen=True)
class Look:
    """One more thing to measure after the verdict, to tell explanations apart.

    Attributes:
        kind: "profile" takes the candidate apart; "repeats" races it some more; "ablation" races
            it without some of its changes.
        without: levers, or files, that an ablation takes back to what the rival has.
        pairs: of a race.
        why: what it would tell.
    """

    kind: Literal["profile", "repeats", "ablation"]
    without: tuple[str, ...] = ()
    pairs: int = 0
    why: str = ""


@dataclass(frozen=True)
class LookLimits:
    """What a benchmarker may ask for; more is cut down to it."""

    looks: int = 2
    pairs: int = 4


class Benchmarker(Protocol):
    """Says what a result means; the numbers and the verdict are given."""

    name: str

    def look(
        self,
        hypothesis: Hypothesis,
        judgement: Judgement,
        changed: Sequence[str],
        limits: LookLimits,
    ) -> list[Look]:
        """Return what to look at besides; none of it changes the verdict.

        Args:
            changed: the levers and files in which the candidate differs from its rival.
        """
        ...

    def explain(
        self, hypothesis: Hypothesis, judgement: Judgement, seen: Sequence[Observation] = ()
    ) -> Explanation:
        """Return mechanism and re-open condition, tied to the figures.

        Args:
            seen: what `look` asked for.
        """
        ...
