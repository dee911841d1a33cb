"""The benchmarker on a language model: where to look once more, and what the figures mean.

The figures come in as they were measured, the verdict as the rule gave it; what comes out is words.
They have to cite a figure that they were given: an explanation that fits any outcome explains none.
"""

import re
from collections.abc import Sequence
from typing import Any, Literal, TypeVar

from langchain_core.messages import BaseMessage, HumanMessage, SystemMessage
from pydantic import Field

from slipstream.evaluation.acceptance import Judgement
from slipstream.memory.records import Hypothesis, Observation

from .chat import Chat, TooLongError
from .offline_benchmarker import OfflineBenchmarker
from .prompting import prompt_of
from .quoting import quote
from .roles import Explanation, Look, LookLimits
from .tools import Arguments, parsed, schema_of

_TRIES = 2
_MAX_WORDS = 130
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_SENTENCE = re.compile(r"[.!?](?=\s+[A-Z(]|\s*$)")


class OneLook(Arguments):
    """One more thing to measure."""

    kind: Literal["profile", "repeats", "ablation"]
    without: list[str] = Field(
        default_factory=list, max_length=8, description="of an ablation: levers or files taken back"
    )
    pairs: int = Field(0, ge=0, description="of repeats and ablations")
    why: str = Field(max_length=300, description="the two explanations that it would separate")


class LookAt(Arguments):
    """Ask for further looks at the experiment, or for none."""

    looks: list[OneLook] = Field(max_length=4)


class Explain(Arguments):
    """Write the finding."""

    mechanism: str = Field(
        min_length=20, max_length=700, description="two sentences that cite the figures"
    )
    reopen: str = Field(
        min_length=5,
        max_length=300,
        description="the condition under which it is worth a try again",
    )


_Reply = TypeVar("_Reply", LookAt, Explain)


class ModelBenchmarker:
    """Satisfies `Benchmarker`."""

    def __init__(self, chat: Chat) -> None:
        self.name = str(chat.spec)
        self._chat = chat
        self._offline = OfflineBenchmarker()

    def look(
        self,
        hypothesis: Hypothesis,
        judgement: Judgement,
        changed: Sequence[str],
        limits: LookLimits,
    ) -> list[Look]:
        """Return what the model wants to look at, within the limits; nothing if it can't say."""
        ask = (
            f"{_facts(hypothesis, judgement)}\n\nThe candidate differs from its rival in: "
            f"{', '.join(changed) or 'nothing'}.\nYou may ask for at most {limits.looks} looks, of "
            f"at most {limits.pairs} pairs each, or for none."
        )
        given = self._reply(ask, LookAt, f"{hypothesis.id} look", hypothesis.id, lambda _: "")
        if given is None:
            return []
        looks = []
        for wanted in given.looks[: limits.looks]:
            without = tuple(n for n in dict.fromkeys(wanted.without) if n in changed)
            if wanted.kind == "ablation" and not 0 < len(without) < len(changed):
                continue  # without everything it is the rival, without nothing the candidate
            pairs = min(max(wanted.pairs, 2), limits.pairs) if wanted.kind != "profile" else 0
            looks.append(Look(wanted.kind, without, pairs, wanted.why))
        return looks

    def explain(
        self, hypothesis: Hypothesis, judgement: Judgement, seen: Sequence[Observation] = ()
    ) -> Explanation:
        """Return the model's two sentences; the offline benchmarker's if it finds none."""
        facts = _facts(hypothesis, judgement)
        if seen:
            facts += "\n\nLooked at besides:\n" + "\n".join(
                quote(f"{one.subject}: {one.text}", f"a look, {one.kind}") for one in seen
            )
        figures = {float(n) for n in _NUMBER.findall(facts)}

        def objection(reply: Explain) -> str:
            return _objection(reply.mechanism, figures)

        occasion = f"{hypothesis.id} explain"
        given = self._reply(f"{facts}\n\nExplain.", Explain, occasion, hypothesis.id, objection)
        if given is None:
            return self._offline.explain(hypothesis, judgement, seen)
        return Explanation(given.mechanism.strip(), given.reopen.strip())

    def _reply(
        self, ask: str, kind: type[_Reply], occasion: str, experiment: str, objection: Any
    ) -> _Reply | None:
        """Return a checked reply; None if the model gives no usable one."""
        name = {LookAt: "look", Explain: "explain"}[kind]
        tool = schema_of(name, kind)
        messages: list[BaseMessage] = [SystemMessage(prompt_of("benchmarker")), HumanMessage(ask)]
        for turn in range(_TRIES):
            try:
                answer = self._chat.ask(
                    messages,
                    [tool],
                    occasion=f"{occasion} #{turn}",
                    experiment=experiment,
                    force=name,
                )
            except TooLongError:
                break
            problem = answer.problem
            call = next((call for call in answer.calls if call.name == name), None)
            if call is not None and not problem:
                reply = parsed(kind, call.arguments)
                problem = reply if isinstance(reply, str) else objection(reply)
                if not isinstance(reply, str) and not problem:
                    return reply
            messages.append(HumanMessage(f"Not usable: {problem or 'no call'}. Call {name} again."))
        text = f"{self.name} gave no usable answer ({occasion}): the figures speak for themselves"
        self._chat.session.say("benchmarker", text, False)
        return None


def _facts(hypothesis: Hypothesis, judgement: Judgement) -> str:
    """Return what was measured; the hypothesis' own words are a planner's, so they are quoted."""
    told = f"{hypothesis.target or 'no change'}\n{hypothesis.mechanism}\n"
    told += f"would be refuted by: {hypothesis.falsifier or 'not said'}"
    lines = [
        f"Experiment {hypothesis.id} on {hypothesis.parent}",
        quote(told, f"the hypothesis of {hypothesis.agent}", 2500),
        f"predicted: {hypothesis.predicted_gain:+.1%}",
        f"verdict: {judgement.verdict} ({judgement.cause})",
        quote(judgement.reason, "the rule, or the engine's own error", 600),
    ]
    if judgement.gain is not None:
        low, high = judgement.gain.interval()
        lines.append(
            f"measured against its rival: {judgement.gain.ratio - 1:+.1%} (95 % interval "
            f"{low - 1:+.1%} to {high - 1:+.1%}, {judgement.gain.num_pairs} pairs)"
        )
    if judgement.tps:
        lines.append(f"speed: {judgement.tps:.1f} tokens/s")
    if (quality := judgement.quality) is not None:
        lines.append(
            f"quality: PPL {quality.ppl_rise:+.2%} (bound {quality.ppl_rise_high:+.2%}), KL "
            f"{quality.kl:.4f}, top-1 {quality.top1:.1%}"
        )
    return "\n".join(lines)


def _objection(mechanism: str, figures: set[float]) -> str:
    """Return what is wrong with an explanation; empty if nothing is."""
    if len(_SENTENCE.findall(mechanism.strip())) > 2 or len(mechanism.split()) > _MAX_WORDS:
        return "the mechanism is two sentences"
    cited = [float(n) for n in _NUMBER.findall(mechanism)]
    if any(figures) and not any(number in figures for number in cited):
        return "the mechanism has to cite one of the figures as it was given"
    return ""
