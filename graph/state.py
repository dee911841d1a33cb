"""What travels along the graph: names only. Trees, logs and measurements stay where they belong.

A checkpoint stores all of this at every step, and gives tuples back as lists.
"""

from dataclasses import dataclass, field
from typing import Annotated

from slipstream.evaluation.acceptance import Cause, Judgement, Verdict
from slipstream.evaluation.gates import QualityReport
from slipstream.evaluation.statistics import Estimate


def merge_variants(old: dict[str, str], new: dict[str, str]) -> dict[str, str]:
    """Reducer: parallel coders each add their own hypothesis' variant."""
    return {**old, **new}


def merge_judgements(old: dict[str, Judgement], new: dict[str, Judgement]) -> dict[str, Judgement]:
    """Reducer: inspection, measuring and judging each add what they decided."""
    return {**old, **new}


@dataclass(frozen=True)
class LoopState:
    """Where the loop stands.

    Attributes:
        champion: the variant to beat.
        hypotheses: ids of this round's hypotheses, which are their experiments' ids too; with
            several experiments in flight, those of earlier rounds that haven't landed as well.
        variants: hypothesis → variant, once its coder is done.
        measured: those of which measuring ended in this round.
        judgements: hypothesis → judgement, once there is one.
        stop: why the loop ends; empty while it goes on.
        done: the last node ran.
    """

    run: str = ""
    round: int = 0
    champion: str = ""
    hypotheses: tuple[str, ...] = ()
    measured: tuple[str, ...] = ()
    variants: Annotated[dict[str, str], merge_variants] = field(default_factory=dict)
    judgements: Annotated[dict[str, Judgement], merge_judgements] = field(default_factory=dict)
    stop: str = ""
    done: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "hypotheses", tuple(self.hypotheses))
        object.__setattr__(self, "measured", tuple(self.measured))

    @property
    def judged(self) -> tuple[str, ...]:
        """The hypotheses that have a judgement, in their order."""
        return tuple(name for name in self.hypotheses if name in self.judgements)

    @property
    def in_flight(self) -> tuple[str, ...]:
        """The hypotheses that have none yet, in their order."""
        return tuple(name for name in self.hypotheses if name not in self.judgements)


@dataclass(frozen=True)
class Task:
    """What one of several parallel coders works on, and whom it will race."""

    hypothesis: str
    champion: str = ""


# The only types that a checkpoint may bring back to life.
CHECKPOINT_TYPES = [Task, Judgement, Verdict, Cause, Estimate, QualityReport]
