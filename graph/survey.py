"""survey: where the champion stands, against the baseline and against the roofline."""

import time
from typing import Any

from langgraph.runtime import Runtime

from slipstream.evaluation.acceptance import Cause, Judgement, Need, Verdict, quality_report
from slipstream.evaluation.errors import EngineError, OutOfMoneyError, SlipstreamError
from slipstream.evaluation.pairs import Stage
from slipstream.evaluation.plans import Plan, Step
from slipstream.evaluation.prompts import Split
from slipstream.kernels.catalogue import ENGINE
from slipstream.kernels.seeds import catalogue_of
from slipstream.memory.leaderboard import champion as recorded_champion
from slipstream.memory.records import Experiment

from .calibrating import calibrate
from .context import LoopContext
from .inspection import refused
from .lineage import commit_lineage, tree_of
from .measuring import measure_pairs, measure_scores, metered
from .state import LoopState


def survey(state: LoopState, runtime: Runtime[LoopContext]) -> dict[str, Any]:
    """Measure the starting point in the first round; in each, say how far the roofline is.

    What has expired or drifted is measured anew: the noise floor, the champion's own speed-up.
    """
    context = runtime.context
    champion = state.champion
    if champion and not state.stop:
        _look_again(context, champion)
    elif champion:
        return {}  # nothing new is begun: what is in flight lands
    else:
        champion = starting_champion(context)
    settings = context.memory.variant(champion).settings
    read_bytes = context.catalogue.read_bytes(context.shape, settings)
    ceiling = context.bandwidth_gbps * 1e9 / read_bytes
    context.say(
        "survey",
        f"champion {champion} reads {read_bytes / 1e6:.0f} MB a token; at "
        f"{context.bandwidth_gbps:.0f} GB/s the ceiling is {ceiling:.0f} tokens/s",
    )
    return {"champion": champion}


def _look_again(context: LoopContext, champion: str) -> None:
    try:
        calibrate(context, champion)
        reverify(context, champion)
    except OutOfMoneyError as error:
        context.say("survey", f"not looked at again: {error}")
    except EngineError as error:
        raise SlipstreamError(
            f"champion {champion} doesn't run any more: {error}; `slipstream resume {context.run}` "
            "tries again"
        ) from error


def starting_champion(context: LoopContext) -> str:
    """Measure the seed engine, and the champion of earlier runs if there is one; return the better.

    What memory has of this run's start already is not measured again.

    Raises:
        SlipstreamError: the starting engine doesn't run on this machine.
    """
    champion = context.seed_variant
    found = recorded_champion(context.memory, context.challenge.name, context.machine_id)
    if found is not None and found.variant != champion and _can_start(found.variant, context):
        champion = found.variant
        context.say("survey", f"memory has a champion: {champion} ({found.speedup:.2f}×)")
    commit_lineage(context, champion)
    try:
        number = "000" if champion == context.seed_variant else "000-inherited"
        calibrate(context, champion, _start_plan(context, number, champion, noise=True))
        with metered(context, None):
            _measure_start(context, "000", context.seed_variant)
            if champion != context.seed_variant:
                _measure_start(context, number, champion)
    except EngineError as error:
        raise SlipstreamError(
            f"the starting engine doesn't run here: {error}; `slipstream doctor` may say why"
        ) from error
    except OutOfMoneyError as error:
        raise SlipstreamError(f"the run's start is not covered: {error}") from error
    context.workshop.promote(champion)
    return champion


def _can_start(variant: str, context: LoopContext) -> bool:
    """Whether an earlier champion's tree is here, and may run here."""
    recorded = context.memory.variant(variant)
    if refused(recorded.engine, context):
        return False
    started = context.memory.variant(context.seed_variant)
    if recorded.settings.get(ENGINE) != started.settings.get(ENGINE):
        return False  # another kind of engine
    try:
        tree = tree_of(context.memory, context.variants, variant)
        levers = catalogue_of(tree).levers
    except (SlipstreamError, ValueError) as error:
        context.say("survey", f"the champion of earlier runs is out of reach: {error}")
        return False
    return levers == context.catalogue.levers  # or this run couldn't pull them


def reverify(context: LoopContext, champion: str) -> None:
    """Race the champion against the first baseline after every few promotions: chains drift."""
    every = context.challenge.acceptance.reverify_every
    promotions = [e for e in context.memory.experiments(run=context.run) if e.cause is Cause.GAIN]
    if promotions and len(promotions) % every == 0 and promotions[-1].variant == champion:
        experiment = _begin(context, f"check-{len(promotions)}", champion)
        recorded = context.memory.experiment(experiment.id)
        if recorded is None or recorded.verdict is None:
            num_pairs = context.rule().num_pairs(Stage.BASELINE)
            context.evaluator.expect(against_baseline(experiment, num_pairs))
            measure_pairs(context, experiment, experiment.rival, Stage.BASELINE, num_pairs)
            record_against_baseline(context, experiment)


def against_baseline(experiment: Experiment, num_pairs: int) -> Plan:
    """Return a direct comparison as an errand."""
    need = Need(stage=Stage.BASELINE, count=num_pairs)
    steps = (Step(experiment.rival, need),)
    return Plan(experiment.id, experiment.variant, experiment.rival, steps=steps)


def _start_plan(context: LoopContext, number: str, variant: str, *, noise: bool) -> Plan:
    """Return all that a run's start asks about a variant, as one errand."""
    rule, baseline = context.rule(), str(context.challenge.baseline)
    needs = [(baseline, Need(stage=Stage.BASELINE, count=rule.num_pairs(Stage.BASELINE)))]
    if noise:
        needs.insert(0, (variant, Need(stage=Stage.NOISE, count=rule.num_pairs(Stage.NOISE))))
    if context.num_documents:
        needs.append((baseline, Need(split=Split.PUBLIC)))
    return Plan(
        f"{context.run}-{number}",
        variant,
        baseline,
        evidence=context.memory.evidence(f"{context.run}-{number}"),
        steps=tuple(Step(rival, need) for rival, need in needs),
        num_documents=context.num_documents,
    )


def _begin(context: LoopContext, number: str, variant: str) -> Experiment:
    experiment = Experiment(
        id=f"{context.run}-{number}",
        run=context.run,
        hypothesis=None,
        variant=variant,
        rival=context.challenge.baseline,
        started_at=time.time(),
    )
    context.memory.add_experiment(experiment)
    return experiment


def _measure_start(context: LoopContext, number: str, variant: str) -> None:
    experiment, rule = _begin(context, number, variant), context.rule()
    # A noise test that still holds was not asked for again, nor what would have come with it.
    context.evaluator.expect(_start_plan(context, number, variant, noise=False))
    measure_pairs(
        context, experiment, experiment.rival, Stage.BASELINE, rule.num_pairs(Stage.BASELINE)
    )
    if context.num_documents:
        measure_scores(context, experiment, Split.PUBLIC)
    record_against_baseline(context, experiment)


def record_against_baseline(context: LoopContext, experiment: Experiment) -> None:
    """Write down a direct comparison with the baseline."""
    evidence = context.memory.evidence(experiment.id)
    gain = evidence.gain(Stage.BASELINE)
    low, high = gain.interval()
    reason = f"{gain.ratio:.2f}× {experiment.rival} ({low:.2f} to {high:.2f})"
    judgement = Judgement(
        Verdict.KEPT,
        Cause.START,
        reason,
        gain,
        quality_report(evidence),
        evidence.tps(Stage.BASELINE),
    )
    context.memory.record(experiment.id, judgement, None, context.budget.spent_s)
    context.say("benchmarker", f"{experiment.variant}: {reason}")
