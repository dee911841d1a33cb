"""The ladder: an experiment climbs from cheap to dear, and only as far as it earns it.

    bytes         could it be faster at all? what it reads, at the speed that memory reads
    tiny input    does it run? before anything is measured
    local screen  where machines are rented: a few pairs on this one, if it can
    projection    what its speed here says about the machine that would be rented; where bytes
                  aren't known a longer race here instead, the local confirmation
    screen        a few pairs
    quality       the public documents
    test          enough pairs to tell, audited, and the held-out documents
    confirmation  new pairs in fresh processes
    job           the four above, on a machine that is rented for it

Each rung that was tried is written down: how it ended, why, how long it took, what it cost.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from slipstream.evaluation.acceptance import Judgement, Need, Verdict
from slipstream.evaluation.errors import EngineError
from slipstream.evaluation.pairs import Stage
from slipstream.evaluation.prompts import Split
from slipstream.kernels.catalogue import Catalogue
from slipstream.kernels.census import ModelShape
from slipstream.memory.jobs import Jobs
from slipstream.memory.records import Experiment, Rung

from .context import LoopContext

PASSED, REFUSED, SKIPPED = "passed", "refused", "skipped"
BYTES, TINY, JOB = "bytes", "tiny input", "job"
_MARGIN = 1.25  # the bandwidth was measured once, and caches help small models
_NO_DRAFT = ("off", "none")


def ceiling_tps(
    catalogue: Catalogue, shape: ModelShape, settings: Mapping[str, str], bandwidth_gbps: float
) -> float | None:
    """Return the tokens per second that no variant with these levers can exceed.

    None where bytes don't say: a draft makes several tokens of one pass.
    """
    drafts = (value for name, value in settings.items() if name in ("draft", "drafter"))
    if any(value not in _NO_DRAFT for value in drafts) or not bandwidth_gbps:
        return None
    read_bytes = catalogue.read_bytes(shape, dict(settings))
    return bandwidth_gbps * 1e9 / read_bytes if read_bytes else None


def byte_veto(experiment: Experiment, context: LoopContext) -> str:
    """Return why a variant can't be faster than its rival, by arithmetic; empty if it may be.

    Only for variants of the rival's own source: new source may read less than its levers say.
    """
    memory = context.memory
    own, rival = memory.variant(experiment.variant), memory.variant(experiment.rival)
    if own.engine != rival.engine:
        note(context, experiment, BYTES, SKIPPED, "new source: its bytes aren't known", 0.0)
        return ""
    ceiling = ceiling_tps(context.catalogue, context.shape, own.settings, context.bandwidth_gbps)
    speeds = [e.tps for e in memory.experiments(variant=rival.id) if e.tps]
    if ceiling is None or not speeds:
        note(context, experiment, BYTES, SKIPPED, "bytes don't bound it", 0.0)
        return ""
    told = (
        f"at {context.bandwidth_gbps:.0f} GB/s at most {ceiling:.0f} tokens/s; {rival.id} does "
        f"{speeds[-1]:.0f}"
    )
    vetoed = _MARGIN * ceiling < speeds[-1]
    note(context, experiment, BYTES, REFUSED if vetoed else PASSED, told, 0.0)
    return f"byte arithmetic: {told}" if vetoed else ""


@dataclass
class Tries:
    """Tries of one experiment on a tiny input, which is run before the experiment is opened."""

    outcome: str = ""
    reason: str = ""
    wall_s: float = 0.0

    def try_out(self, smoke: Callable[[], str]) -> None:
        """Run it; what it raises is passed on.

        Args:
            smoke: returns why it wasn't tried, if it wasn't.
        """
        begun = time.monotonic()
        try:
            self.reason = smoke()
            self.outcome = SKIPPED if self.reason else PASSED
        except EngineError as error:
            self.outcome, self.reason = REFUSED, str(error)
            raise
        finally:
            self.wall_s += time.monotonic() - begun

    def note(self, context: LoopContext, experiment: str) -> None:
        """Write down how the last of them ended."""
        if self.outcome:
            rung = Rung(experiment, TINY, self.outcome, self.reason, self.wall_s, time.time())
            context.memory.add_rung(rung)


class Climb:
    """The rungs of one experiment's measuring, timed as they are climbed."""

    def __init__(self, context: LoopContext, experiment: Experiment) -> None:
        self._context, self._experiment = context, experiment
        self._seconds: dict[str, float] = {}

    @contextmanager
    def step(self, need: Need) -> Iterator[None]:
        """Time the measuring of what the rule asked for."""
        rung, begun = JOB if self._context.rented else _rung_of(need), time.monotonic()
        try:
            yield
        finally:
            self._seconds[rung] = self._seconds.get(rung, 0.0) + time.monotonic() - begun

    def ends(self, judgement: Judgement) -> None:
        """Write the rungs down: all passed but the last, which is as the judgement says."""
        for rung, seconds in self._seconds.items():
            last = rung == list(self._seconds)[-1]
            refused = last and judgement.verdict is not Verdict.KEPT
            outcome = REFUSED if refused else PASSED
            reason = judgement.reason if last else ""
            usd = None
            if rung == JOB:
                usd = Jobs(self._context.memory.database).usd(self._experiment.id)
            note(self._context, self._experiment, rung, outcome, reason, seconds, usd)


def _rung_of(need: Need) -> str:
    if need.split is Split.PUBLIC:
        return "quality"
    stage = need.stage or need.audit
    if stage is Stage.SCREEN:
        return "screen"
    return "confirmation" if stage is Stage.CONFIRM else "test"


def note(
    context: LoopContext,
    experiment: Experiment,
    rung: str,
    outcome: str,
    reason: str,
    wall_s: float,
    usd: float | None = None,
) -> None:
    """Write a rung down."""
    now = time.time()
    context.memory.add_rung(Rung(experiment.id, rung, outcome, reason, wall_s, now, usd))
