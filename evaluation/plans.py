"""A whole experiment as an errand: for a machine that is too far away to be asked step by step.

A `Plan` says what the acceptance rule will be applied to; `carry_out` applies it there, measures
what it asks for, and tells every result as one line. Whoever reads the lines writes them down and
applies the rule again: the verdict is never the far machine's.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from .acceptance import Evidence, Need, Rule, decide
from .audits import Audit
from .errors import EngineError
from .evaluator import Evaluator
from .gates import DocumentScore
from .pairs import Pair
from .prompts import Split

_MARK = "slipstream-result "


@dataclass(frozen=True)
class Step:
    """One thing to measure, against a rival."""

    rival: str
    need: Need


@dataclass(frozen=True)
class Plan:
    """What is going to be asked about one variant.

    Attributes:
        experiment: names the errand, so that it isn't run twice.
        rule: decides what to measure, until there is a verdict; None if `steps` say it all.
        evidence: what is known before.
        num_documents: scored documents per split.
        last: nothing is asked after it, so no money needs to be kept back.
    """

    experiment: str
    variant: str
    rival: str
    rule: Rule | None = None
    evidence: Evidence = field(default_factory=Evidence)
    steps: tuple[Step, ...] = ()
    num_documents: int = 0
    last: bool = False


@dataclass(frozen=True)
class BeginLine:
    """The first line: what machine measures.

    Attributes:
        machine: its label.
    """

    machine: str
    kind: Literal["begin"] = "begin"


@dataclass(frozen=True)
class PairLine:
    """One pair, void ones too."""

    value: Pair
    kind: Literal["pair"] = "pair"


@dataclass(frozen=True)
class ScoreLine:
    """One scored document."""

    split: Split
    value: DocumentScore
    kind: Literal["score"] = "score"


@dataclass(frozen=True)
class AuditLine:
    """One audited block."""

    value: Audit
    kind: Literal["audit"] = "audit"


@dataclass(frozen=True)
class FailureLine:
    """The engine failed twice in the same place; nothing but the end comes after."""

    error: str
    reason: str
    log: str = ""
    kind: Literal["failure"] = "failure"


@dataclass(frozen=True)
class EndLine:
    """All was told.

    Attributes:
        count: results before this one, so that a gap is seen.
    """

    count: int
    kind: Literal["end"] = "end"


Line = BeginLine | PairLine | ScoreLine | AuditLine | FailureLine | EndLine
_LINE: TypeAdapter[Line] = TypeAdapter(Annotated[Line, Field(discriminator="kind")])
_PLAN = TypeAdapter(Plan)


def plan_to_json(plan: Plan) -> Any:
    """Return a plan as JSON."""
    return _PLAN.dump_python(plan, mode="json")


def plan_from_json(value: Any) -> Plan:
    """Return a plan from its JSON."""
    return _PLAN.validate_python(value)


def print_line(line: Line) -> str:
    """Return a result as one line of text that no other output looks like."""
    return f"{_MARK}{_LINE.dump_json(line).decode()}"


def read_line(text: str) -> Line | None:
    """Return the result in a line of text; None if it is some other output, or was cut off."""
    text = text.strip()
    if not text.startswith(_MARK):
        return None
    try:
        return _LINE.validate_json(text.removeprefix(_MARK))
    except ValidationError:  # whoever counts sees the gap
        return None


def carry_out(plan: Plan, evaluator: Evaluator) -> Iterator[Line]:
    """Measure what a plan asks for, and yield each result.

    An engine that fails is started once more; a second failure in the same place is the last line.
    """
    known, steps = plan.evidence, list(plan.steps)
    try:
        while (step := _next(plan, steps, known)) is not None:
            before, tries = known, 0
            while tries < 2:
                tries += 1
                try:
                    for line in _measured(plan, step, evaluator, known):
                        known = with_line(known, line)
                        yield line
                    break
                except EngineError:
                    if tries == 2:
                        raise
                    evaluator.release(plan.variant)
                    evaluator.release(step.rival)
            if known is before and plan.rule is not None:  # it would ask for it for ever
                yield FailureLine("SlipstreamError", f"nothing was measured for {step.need}")
                return
    except EngineError as error:
        yield FailureLine(type(error).__name__, str(error), error.log)


def _next(plan: Plan, steps: list[Step], known: Evidence) -> Step | None:
    if steps:
        return steps.pop(0)
    need = decide(known, plan.rule) if plan.rule is not None else None
    return Step(plan.rival, need) if isinstance(need, Need) else None


def _measured(plan: Plan, step: Step, evaluator: Evaluator, known: Evidence) -> Iterator[Line]:
    need = step.need
    if need.stage is not None:
        done = {pair.index for pair in known.counting(need.stage)}
        todo = {i: known.num_void(need.stage, i) for i in range(need.count) if i not in done}
        for pair in evaluator.pairs(plan.variant, step.rival, need.stage, todo):
            yield PairLine(pair)
    if need.audit is not None:
        seen = {(one.index, one.block) for one in known.audits if one.stage is need.audit}
        pairs = known.counting(need.audit)
        for audit in evaluator.audits(plan.variant, pairs, need.count, seen):
            yield AuditLine(audit)
    if need.split is not None:
        scored = {score.document for score in known.scores.get(need.split, ())}
        for score in evaluator.scores(plan.variant, need.split, scored):
            yield ScoreLine(need.split, score)


def with_line(known: Evidence, line: Line) -> Evidence:
    """Return the evidence with one more result, unless it has that already."""
    pairs: Sequence[Pair] = known.pairs
    scores: Mapping[Split, Sequence[DocumentScore]] = known.scores
    audits: Sequence[Audit] = known.audits
    match line:
        case PairLine(pair):
            key = (pair.stage, pair.index, pair.attempt)
            if all(key != (one.stage, one.index, one.attempt) for one in pairs):
                pairs = (*pairs, pair)
        case ScoreLine(split, score):
            own = scores.get(split, ())
            if all(score.document != one.document for one in own):
                scores = {**scores, split: (*own, score)}
        case AuditLine(audit):
            place = (audit.stage, audit.index, audit.block)
            if all(place != (one.stage, one.index, one.block) for one in audits):
                audits = (*audits, audit)
        case _:
            return known
    return Evidence(pairs, scores, audits)
