"""Measures what is missing and writes each result down at once, so that nothing is done twice."""

import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace

from slipstream.evaluation.acceptance import Need
from slipstream.evaluation.conditions import disturbance
from slipstream.evaluation.errors import (
    EngineError,
    OutOfTimeError,
    SlipstreamError,
    WorkerLostError,
)
from slipstream.evaluation.pairs import Pair, Stage
from slipstream.evaluation.prompts import Split
from slipstream.memory.claims import Claim, Holding, StaleClaimError
from slipstream.memory.costs import MEASURING, Cost
from slipstream.memory.records import Experiment

from .context import LoopContext

_LEAST_S = 0.1  # what took less is not worth a row
_MAX_LOST = 20  # places to measure, over what one experiment needs next


def meet(context: LoopContext, experiment: Experiment, need: Need, keep_s: float) -> None:
    """Measure what `need` asks for.

    Args:
        keep_s: seconds of the budget that stay untouched, for the final verification.

    Raises:
        ClaimedError: somebody else is measuring the same variant.
        EngineError: an engine failed twice in the same place.
        OutOfTimeError: the budget but for the final verification is spent.
        StopRequested: Ctrl-C, between two measurements.
    """

    def check_time() -> None:
        if context.budget.left_s < keep_s:
            raise OutOfTimeError("the run's time ended before it was decided")

    check_time()
    if need.stage is not None:
        measure_pairs(context, experiment, experiment.rival, need.stage, need.count, check_time)
    if need.audit is not None:
        audit_blocks(context, experiment, need.audit, need.count, check_time)
    if need.split is not None:
        measure_scores(context, experiment, need.split, check_time)


def reserve_s(context: LoopContext, champion: str) -> float:
    """Return the seconds to keep back for `verify`, from how fast both engines were so far."""
    start = context.memory.evidence(f"{context.run}-000").pairs
    baseline_tps = [pair.tps_rival for pair in start if pair.stage is Stage.BASELINE]
    own_tps = [e.tps for e in context.memory.experiments(variant=champion) if e.tps]
    if not baseline_tps or not own_tps:
        return 0.0
    block_s = 1 / min(baseline_tps) + 1 / min(own_tps)
    num_tokens = 2 * context.challenge.workload.num_tokens
    return num_tokens * block_s * context.challenge.acceptance.confirm_pairs


def time_for_another(context: LoopContext, champion: str, landed: int) -> bool:
    """Whether one more experiment, like the `landed` ones before, would end within the budget."""
    per_experiment = context.budget.spent_s * context.parallel / (landed + context.parallel)
    return context.budget.left_s >= per_experiment + reserve_s(context, champion)


@contextmanager
def metered(context: LoopContext, experiment: str | None) -> Iterator[None]:
    """Write down how long measuring takes, and how long it keeps a GPU."""
    run, begun, at = context.run, time.monotonic(), time.time()
    try:
        yield
    finally:
        wall_s = time.monotonic() - begun
        gpu_s = wall_s if context.machine.device == "cuda" else 0.0
        name = f"{run}|{experiment}|{secrets.token_hex(6)}"
        spent = Cost(name, run, experiment, MEASURING, context.machine_id, "ok", started_at=at)
        if wall_s >= _LEAST_S and not context.rented:  # what a job took is in its own row
            context.session.costs.begin(replace(spent, wall_s=wall_s, gpu_s=gpu_s))


def _no_limit() -> None:
    """Let measuring take as long as it takes."""


def under_claim(
    context: LoopContext, experiment: Experiment, measure: Callable[[Claim], None]
) -> None:
    """Measure under the claim on the experiment's variant; again if it, or a worker, was lost.

    What was measured without a valid claim isn't written, so it is measured anew. Whoever measures
    a candidate gives up if somebody else is at it; a starting point is waited for.

    Raises:
        ClaimedError: somebody else is measuring the same candidate.
    """
    key = context.key_of(experiment.variant)

    def waiting(holding: Holding) -> None:
        text = f"{experiment.variant} is being measured by {holding.holder}: waiting"
        context.say("benchmarker", text, fleeting=True)
        context.check_stop()

    lost = 0
    while True:
        if experiment.hypothesis is None:
            claim = context.claims.wait_for(key, waiting)
        else:
            claim = context.claims.hold(key)
        try:
            measure(claim)
        except StaleClaimError as error:
            context.claims.drop(claim)
            context.say("benchmarker", str(error))
            # Whatever stopped this process was on the clock of what it measured last.
            context.evaluator.release(experiment.variant)
            continue
        except WorkerLostError as error:
            lost += 1
            if lost == _MAX_LOST:
                raise SlipstreamError(
                    f"{experiment.variant}: {lost} places to measure were lost over it, at last: "
                    f"{error}; `slipstream resume {context.run}` tries again"
                ) from error
            context.say("benchmarker", f"{experiment.variant}: {error}; what it told is kept")
            context.check_stop()
            continue
        if experiment.hypothesis is None:  # a candidate's claim is held until its verdict
            context.claims.drop(claim)
            context.memory.claims.release(claim)
        return


def measure_pairs(
    context: LoopContext,
    experiment: Experiment,
    rival: str,
    stage: Stage,
    count: int,
    check_time: Callable[[], None] = _no_limit,
) -> None:
    """Measure the pairs of a stage that memory doesn't have yet."""

    def measure(claim: Claim) -> None:
        attempts = 2  # a failed process voids its pair; a second failure is the engine's
        while missing := _missing_pairs(context, experiment, stage, count):
            context.say("benchmarker", f"{stage}: {len(missing)} pairs of {experiment.variant}")
            done = count - len(missing)
            try:
                pairs = context.evaluator.pairs(experiment.variant, rival, stage, missing)
                with closing(pairs) as measured:
                    for pair in measured:
                        context.memory.add_pair(experiment.id, pair, claim)
                        done += _tell(context, pair, done, count)
                        context.check_stop()
                        if not pair.void:
                            check_time()
                return
            except EngineError:
                attempts -= 1
                context.evaluator.release(experiment.variant)
                context.evaluator.release(rival)
                if attempts == 0:
                    raise

    under_claim(context, experiment, measure)


def _tell(context: LoopContext, pair: Pair, done: int, count: int) -> bool:
    """Say how a pair went; return whether it counts."""
    if pair.void:
        context.say("benchmarker", f"pair {pair.index + 1} is void: {pair.void}")
        return False
    max_disturbance = context.challenge.acceptance.max_disturbance
    if disturbed := disturbance(pair.conditions, max_disturbance):
        text = f"pair {pair.index + 1} counts, the last attempt at it: {disturbed}"
        context.say("benchmarker", text)
    figures = f"{pair.tps:.1f} against {pair.tps_rival:.1f} tokens/s"
    context.say("benchmarker", f"{done + 1}/{count}: {figures}", fleeting=True)
    return True


def _missing_pairs(
    context: LoopContext, experiment: Experiment, stage: Stage, count: int
) -> dict[int, int]:
    """Return the pairs that memory doesn't have: index → attempts that were void."""
    evidence = context.memory.evidence(experiment.id)
    done = {pair.index for pair in evidence.counting(stage)}
    return {i: evidence.num_void(stage, i) for i in range(count) if i not in done}


def measure_scores(
    context: LoopContext,
    experiment: Experiment,
    split: Split,
    check_time: Callable[[], None] = _no_limit,
) -> None:
    """Score the documents of a split that memory doesn't have yet."""

    def measure(claim: Claim) -> None:
        done = {score.document for score in context.memory.evidence(experiment.id).scores[split]}
        if len(done) >= context.num_documents:
            return
        context.say("benchmarker", f"quality: {split} documents of {experiment.variant}")
        with closing(context.evaluator.scores(experiment.variant, split, done)) as scores:
            for score in scores:
                context.memory.add_score(experiment.id, split, score, claim)
                done.add(score.document)
                progress = f"{len(done)}/{context.num_documents}: {score.document}"
                context.say("benchmarker", progress, fleeting=True)
                context.check_stop()
                check_time()

    under_claim(context, experiment, measure)


def audit_blocks(
    context: LoopContext,
    experiment: Experiment,
    stage: Stage,
    count: int,
    check_time: Callable[[], None] = _no_limit,
) -> None:
    """Audit the timed blocks of a stage that memory has no audit of yet."""

    def measure(claim: Claim) -> None:
        evidence = context.memory.evidence(experiment.id)
        done = {(audit.index, audit.block) for audit in evidence.audits if audit.stage is stage}
        context.say("benchmarker", f"audit: {count} timed blocks of {experiment.variant}, {stage}")
        pairs = evidence.counting(stage)
        with closing(context.evaluator.audits(experiment.variant, pairs, count, done)) as audits:
            for audit in audits:
                context.memory.add_audit(experiment.id, audit, claim)
                figures = f"{audit.matches}/{audit.num_tokens} tokens are the reference's picks"
                context.say("benchmarker", figures, fleeting=True)
                context.check_stop()
                check_time()

    under_claim(context, experiment, measure)
