"""The same run again, offline: `slipstream run --replay RUN`.

The graph, the agents' prompts, the rule and the workshop are the code as it is now; models, engines
and people are what the tape and memory say they were. So a replay shows whether the code still
comes to the same experiments, and a prompt that changed is named by the first call that differs.
What the run knew at its beginning is taken from memory as of then; what other runs wrote meanwhile
is not in it.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from slipstream.evaluation.bench import Bench
from slipstream.evaluation.errors import SlipstreamError
from slipstream.evaluation.home import data_dir, make_dir, moved_to
from slipstream.kernels.variants import VariantStore
from slipstream.memory.cassette import Player
from slipstream.memory.exchange import import_memory, lines_before
from slipstream.memory.logs import LogStore
from slipstream.memory.records import Experiment, Run, RunState
from slipstream.memory.store import Memory

from .context import Event
from .liveness import run_dir
from .opening import CASSETTE, SHAPE
from .session import resume
from .witness import StandIn

_NO_LIMIT_MINUTES = 1e9  # the tape says when time was up
_NOT_COMPARED = frozenset({"created_at", "started_at", "decided_at", "learned_at", "log"})


@dataclass(frozen=True)
class Replayed:
    """How a replay ended.

    Attributes:
        calls: answers that came from the tape, of so many on it.
        difference: the first thing that came out otherwise; empty if nothing did.
        folder: the replay's own memory, variants and workshop.
    """

    run: str
    experiments: int
    calls: int
    calls_on_tape: int
    difference: str
    folder: str


class ReplayMemory(Memory):
    """A memory into which an experiment's measurements come as soon as it begins."""

    def __init__(self, url: str, original: Memory) -> None:
        super().__init__(url)
        self._original = original

    def add_experiment(self, experiment: Experiment) -> None:
        """Record that an experiment begins, and all that was measured for it then."""
        super().add_experiment(experiment)
        evidence = self._original.evidence(experiment.id)
        for pair in evidence.pairs:
            self.add_pair(experiment.id, pair)
        for split, scores in evidence.scores.items():
            for score in scores:
                self.add_score(experiment.id, split, score)
        for audit in evidence.audits:
            self.add_audit(experiment.id, audit)


def replay(
    run_id: str, memory: Memory, *, emit: Callable[[Event], None] = lambda _: None
) -> Replayed:
    """Run a recorded run again and compare.

    Raises:
        SlipstreamError: no recording, or a call that differs from it.
    """
    run = memory.run(run_id)
    player = Player(run_dir(run.id) / CASSETTE)
    if run.state is not RunState.FINISHED:
        raise SlipstreamError(f"run {run.id} is not finished: `slipstream resume {run.id}` first")
    folder = run_dir(run.id) / "replay"
    shutil.rmtree(folder, ignore_errors=True)
    make_dir(folder)
    before = lines_before(
        memory,
        VariantStore(data_dir() / "variants"),
        LogStore(data_dir() / "logs"),
        run.started_at,
    )
    with moved_to(folder), ReplayMemory(f"sqlite:///{folder}/memory.db", memory) as again:
        stores = VariantStore(make_dir(folder / "variants")), LogStore(folder / "logs")
        import_memory(again, *stores, before)
        again.add_run(_as_new(run))
        shape = SHAPE.validate_python(player.observe("shape", dict))
        bench = Bench(StandIn(player), shape, int(player.observe("documents", int)))
        resume(run.id, again, emit=emit, bench=bench, tape=player)
        difference = _first_difference(run.id, memory, again)
        count = sum(e.hypothesis is not None for e in again.experiments(run=run.id))
    return Replayed(run.id, count, len(player.played), len(player.calls), difference, str(folder))


def _as_new(run: Run) -> Run:
    return replace(
        run,
        state=RunState.RUNNING,
        spent_s=0.0,
        delta=None,
        calibrations=0,
        calibrated_at=None,
        bandwidth_gbps=None,
        budget_minutes=_NO_LIMIT_MINUTES,
    )


def _first_difference(run: str, then: Memory, now: Memory) -> str:
    """Return where two memories of one run differ first; times aside."""
    for what, old, new in (
        ("hypothesis", then.hypotheses(run), now.hypotheses(run)),
        ("experiment", then.experiments(run=run), now.experiments(run=run)),
        (
            "finding",
            [f for f in then.findings() if f.experiment.startswith(run)],
            [f for f in now.findings() if f.experiment.startswith(run)],
        ),
    ):
        mine, others = _by_name(old), _by_name(new)
        for name in sorted(mine.keys() | others.keys()):
            if name not in mine or name not in others:
                return f"{what} {name} is {'new' if name in others else 'missing'}"
            for field, value in mine[name].items():
                if value != others[name][field]:
                    was, is_ = json.dumps(value), json.dumps(others[name][field])
                    return f"{what} {name}: {field} was {was[:200]}, is {is_[:200]}"
    return ""


def _by_name(records: Any) -> dict[str, dict[str, Any]]:
    found = {}
    for record in records:
        fields = {k: v for k, v in asdict(record).items() if k not in _NOT_COMPARED}
        found[fields.get("id") or fields["experiment"]] = fields
    return found
