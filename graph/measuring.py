"""Measures what is missing and writes each result down at once, so that nothing is done twice."""

from slipstream.evaluation.acceptance import Need, Rule
from slipstream.evaluation.errors import EngineError
from slipstream.evaluation.pairs import Stage
from slipstream.evaluation.prompts import Split
from slipstream.memory.records import Experiment

from .context import LoopContext


def meet(context: LoopContext, experiment: Experiment, need: Need, rule: Rule) -> None:
    """Measure what `need` asks for.

    Raises:
        EngineError: an engine failed twice in the same place.
        StopRequested: Ctrl-C, between two measurements.
    """
    if need.stage is not None:
        rival = experiment.variant if need.stage is Stage.NOISE else experiment.rival
        measure_pairs(context, experiment, rival, need.stage, rule.num_pairs(need.stage))
    if need.split is not None:
        measure_scores(context, experiment, need.split)


def measure_pairs(
    context: LoopContext, experiment: Experiment, rival: str, stage: Stage, count: int
) -> None:
    """Measure the pairs of a stage that memory doesn't have yet."""
    attempts = 2  # a failed process voids its pair; a second failure is the engine's
    while True:
        done = {p.index for p in context.memory.evidence(experiment.id).pairs if p.stage is stage}
        missing = [index for index in range(count) if index not in done]
        if not missing:
            return
        context.say("benchmarker", f"{stage}: {len(missing)} pairs of {experiment.variant}")
        try:
            for pair in context.evaluator.pairs(experiment.variant, rival, stage, missing):
                context.memory.add_pair(experiment.id, pair)
                context.check_stop()
        except EngineError:
            attempts -= 1
            context.evaluator.release(experiment.variant)
            context.evaluator.release(rival)
            if attempts == 0:
                raise


def measure_scores(context: LoopContext, experiment: Experiment, split: Split) -> None:
    """Score the documents of a split that memory doesn't have yet."""
    done = {score.document for score in context.memory.evidence(experiment.id).scores[split]}
    context.say("benchmarker", f"quality: {split} documents of {experiment.variant}")
    for score in context.evaluator.scores(experiment.variant, split, done):
        context.memory.add_score(experiment.id, split, score)
        context.check_stop()
