"""The benchmarker that needs no key: puts the figures into two sentences."""

from collections.abc import Sequence

from slipstream.evaluation.acceptance import Cause, Judgement
from slipstream.memory.duplicates import REOPEN_SPEEDUP
from slipstream.memory.records import Hypothesis, Observation

from .roles import Explanation, Look, LookLimits

_REOPEN = {
    Cause.GAIN: "its gain should be measured again when the engine around it changes",
    Cause.START: "it is the starting point",
    Cause.NO_GAIN: f"once the champion is {REOPEN_SPEEDUP:g} times as fast as it was here",
    Cause.CONTRADICTION: "once it decodes the same way timed and scored",
    Cause.QUALITY: "with finer groups, a better rounding method, or under a looser tier",
    Cause.POWER: "with more pairs or on a quieter machine",
    Cause.ENGINE: "when the engine's source or the machine changes",
    Cause.EXPOSED: "on a machine that has a sandbox",
    Cause.BUDGET: "in the next run",
    Cause.CODER: "with another coder, or told in smaller steps",
    Cause.REFUSED: "once whoever refused it thinks better of it",
    Cause.VETO: "on a machine whose memory reads faster",
    Cause.SCREENED: "on a machine that differs more from where it was screened",
    Cause.UNREACHED: "when machines last long enough to measure it",
    Cause.CLAIMED: "once the other run has let go of it without a result",
}


class OfflineBenchmarker:
    """Satisfies `Benchmarker`."""

    name = "offline-benchmarker"

    def look(
        self,
        hypothesis: Hypothesis,  # noqa: ARG002
        judgement: Judgement,  # noqa: ARG002
        changed: Sequence[str],  # noqa: ARG002
        limits: LookLimits,  # noqa: ARG002
    ) -> list[Look]:
        """Look at nothing else: it has no explanations to tell apart."""
        return []

    def explain(
        self,
        hypothesis: Hypothesis,
        judgement: Judgement,
        seen: Sequence[Observation] = (),  # noqa: ARG002
    ) -> Explanation:
        """Return what was expected and what was seen."""
        expected = f"Expected {hypothesis.predicted_gain:+.1%}: {hypothesis.mechanism}."
        return Explanation(f"{expected} Seen: {judgement.reason}.", _REOPEN[judgement.cause])
