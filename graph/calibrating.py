"""What difference is none: the A/A test of this machine now, which expires, and its power."""

import time

from slipstream.evaluation.acceptance import Evidence, Need, Rule
from slipstream.evaluation.pairs import Stage
from slipstream.evaluation.plans import Plan, Step
from slipstream.evaluation.statistics import detectable_gain, estimate, noise_floor
from slipstream.memory.records import Experiment

from .context import LoopContext
from .measuring import measure_pairs


def calibrate(context: LoopContext, variant: str, plan: Plan | None = None) -> None:
    """Race an engine against itself, unless that was done a short while ago.

    Args:
        plan: what else will be asked about the variant next, this race included.
    """
    run = context.memory.run(context.run)
    lifetime_s = context.challenge.acceptance.calibration_minutes * 60
    if run.calibrated_at is not None:
        age_s = time.time() - run.calibrated_at
        number = len(context.memory.hypotheses(context.run))
        name = f"noise test {run.calibrations} held after {number} hypotheses"
        # The age in a replay is another one.
        if context.tape.observe(name, lambda: age_s < lifetime_s):
            return
    experiment = Experiment(
        id=f"{context.run}-noise-{run.calibrations}",
        run=context.run,
        hypothesis=None,
        variant=variant,
        rival=variant,
        started_at=time.time(),
    )
    context.memory.add_experiment(experiment)
    rule = context.rule()
    need = Need(stage=Stage.NOISE, count=rule.num_pairs(Stage.NOISE))
    alone = Plan(experiment.id, variant, variant, steps=(Step(variant, need),))
    context.evaluator.expect(plan or alone)
    measure_pairs(context, experiment, variant, Stage.NOISE, rule.num_pairs(Stage.NOISE))
    evidence = context.memory.evidence(experiment.id)
    ratios = evidence.log_ratios(Stage.NOISE)
    delta = noise_floor(ratios, rule.num_pairs(Stage.TEST), seed=context.seed)
    context.memory.update_run(
        context.run, delta=delta, calibrated_at=time.time(), calibrations=run.calibrations + 1
    )
    context.say("benchmarker", f"noise floor of this machine now: {delta:.2%}")
    context.say("benchmarker", power(evidence, context.rule(), context))


def power(evidence: Evidence, rule: Rule, context: LoopContext) -> str:
    """Say what gain this run can tell from noise, and how long that takes."""
    pairs = evidence.counting(Stage.NOISE)
    num_pairs = rule.last_look(Stage.TEST)
    deviation = estimate(evidence.log_ratios(Stage.NOISE)).deviation
    gain = max(rule.delta, detectable_gain(deviation, num_pairs, rule.level))
    block_s = context.challenge.workload.num_tokens / evidence.tps(Stage.NOISE)
    minutes = 4 * block_s * (num_pairs + rule.last_look(Stage.CONFIRM)) / 60
    return (
        f"this run can tell {gain:.1%} apart in ~{max(1, round(minutes))} minutes "
        f"(80 % power; one pair of the {len(pairs)} strays by {deviation:.1%})"
    )
