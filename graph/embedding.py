"""The agents as nodes of somebody else's graph.

Each factory closes over a `LoopContext` (`session.open_context` makes one) and returns a node that
reads and writes plain fields, so the host's state may be a dataclass, a TypedDict or a pydantic
model with any further fields:

    planner_node      reads round, champion        writes hypotheses, champion
    coder_node        reads hypotheses, champion   writes variants
    benchmarker_node  reads hypotheses, champion   writes verdicts, champion
"""

from typing import Any, Protocol

from slipstream.evaluation.acceptance import Judgement, Verdict
from slipstream.evaluation.errors import OutOfMoneyError, OutOfTimeError

from .context import LoopContext
from .implement import build_variant
from .inspection import inspect_variant
from .judge import judge_variant
from .measure import measure_variant
from .plan import write_hypotheses
from .record import write_down
from .survey import starting_champion


class Node(Protocol):
    """A LangGraph node without runtime."""

    def __call__(self, state: Any) -> dict[str, Any]:
        """Return the changed fields."""
        ...


def planner_node(context: LoopContext) -> Node:
    """Return a node that writes this round's hypotheses down and returns their ids.

    Where the host's state has no champion yet, it measures the starting point first. There are no
    hypotheses once the run's money or time is spent.
    """

    def node(state: Any) -> dict[str, Any]:
        champion = _field(state, "champion") or starting_champion(context)
        try:
            changes = write_hypotheses(context.run, _field(state, "round") or 0, champion, context)
        except (OutOfMoneyError, OutOfTimeError) as error:
            context.say("planner", str(error))
            changes = {"hypotheses": ()}
        return {**changes, "champion": champion}

    return node


def coder_node(context: LoopContext) -> Node:
    """Return a node that turns every hypothesis into a variant."""

    def node(state: Any) -> dict[str, Any]:
        variants: dict[str, str] = {}
        champion = _field(state, "champion") or context.seed_variant
        for hypothesis in _field(state, "hypotheses"):
            changes = build_variant(hypothesis, context, champion)
            variants |= changes["variants"]
            for failed, judgement in changes.get("judgements", {}).items():
                write_down(failed, judgement, context)
        return {"variants": variants}

    return node


def benchmarker_node(context: LoopContext) -> Node:
    """Return a node that measures, judges and records every hypothesis that has a variant."""

    def node(state: Any) -> dict[str, Any]:
        champion = _field(state, "champion") or context.seed_variant
        verdicts: dict[str, str] = {}
        best = 0.0
        for hypothesis in _field(state, "hypotheses"):
            experiment = context.memory.experiment(hypothesis)
            if experiment is None:
                continue
            if experiment.verdict is None:
                judgement = _judge(hypothesis, experiment.variant, context)
                write_down(hypothesis, judgement, context)
                experiment = context.memory.experiment(hypothesis) or experiment
            verdicts[hypothesis] = str(experiment.verdict)
            if experiment.verdict is Verdict.KEPT and (experiment.gain or 0.0) > best:
                best, champion = experiment.gain or 0.0, experiment.variant
        return {"verdicts": verdicts, "champion": champion}

    return node


def _judge(hypothesis: str, variant: str, context: LoopContext) -> Judgement:
    judgement = inspect_variant(hypothesis, variant, context)
    while judgement is None:
        judgement = measure_variant(hypothesis, context) or judge_variant(hypothesis, context)
    return judgement


def _field(state: Any, name: str) -> Any:
    return state.get(name) if isinstance(state, dict) else getattr(state, name, None)
