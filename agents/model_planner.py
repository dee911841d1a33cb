"""The planner on a language model: it reads, searches what was learned, and proposes.

What it proposes is checked here, by code: levers and values that exist, files that are there, a
gain that the sum can bear. An answer that can't be used costs one more call; a model that doesn't
come to its senses costs the round nothing but its own ideas: the offline planner steps in.
"""

import math
from dataclasses import replace

from langchain_core.messages import BaseMessage, HumanMessage, SystemMessage, ToolMessage

from slipstream.memory.ledger import Correction
from slipstream.memory.records import EDIT

from .chat import Chat, TooLongError
from .clients import ToolCall
from .desk import Desk, DeskError
from .offline_planner import OfflinePlanner
from .planner_tools import PLANNER_TOOLS, Idea, Propose, SearchFindings
from .prompting import describe, prompt_of
from .quoting import quote
from .reading_tools import read
from .roles import Briefing, Planner, Proposal
from .tools import parsed, schema_of, understood

_MAX_READS = 16
_MAX_MISTAKES = 3
_MAX_HITS = 8
_MAX_REFUSED = 2  # proposals of one round that memory speaks against


class ModelPlanner:
    """Satisfies `Planner`.

    Args:
        fallback: who plans a round for which the model has no usable answer.
    """

    def __init__(self, chat: Chat, fallback: Planner | None = None) -> None:
        self.name = str(chat.spec)
        self._chat = chat
        self._fallback = fallback or OfflinePlanner()

    def plan(self, briefing: Briefing, count: int) -> list[Proposal]:
        """Return up to `count` proposals on the champion; the fallback's if the model has none."""
        problem = "what it proposes was refuted before"
        if len(briefing.refused) < _MAX_REFUSED:
            talk = _Talk(self._chat, briefing, count)
            if proposals := talk.hold():
                return proposals
            problem = talk.problem
        text = f"{self.name} gave no usable plan ({problem}): {self._fallback.name} plans"
        self._chat.session.say("planner", text, False)
        stand_in = self._fallback
        return [replace(one, agent=stand_in.name) for one in stand_in.plan(briefing, count)]


class _Talk:
    """One conversation that ends with proposals, or with a problem."""

    def __init__(self, chat: Chat, briefing: Briefing, count: int) -> None:
        self._chat, self._briefing, self._count = chat, briefing, count
        self._desk = Desk(briefing.tree) if briefing.tree is not None else None
        self.problem = "it was asked too often"
        known = len(briefing.planned) + len(briefing.refused)
        self._occasion = f"round {briefing.round} after {known}"

    def hold(self) -> list[Proposal]:
        ask = f"Propose {self._count} {'hypothesis' if self._count == 1 else 'hypotheses'}."
        messages: list[BaseMessage] = [
            SystemMessage(prompt_of("planner")),
            HumanMessage(f"{describe(self._briefing)}\n\n{ask}"),
        ]
        tools = [schema_of(name, arguments) for name, arguments in PLANNER_TOOLS.items()]
        mistakes = 0
        for turn in range(_MAX_READS + _MAX_MISTAKES):
            force = "propose" if turn >= _MAX_READS else None
            occasion = f"{self._occasion} #{turn}"
            try:
                answer = self._chat.ask(messages, tools, occasion=occasion, force=force)
            except TooLongError as error:
                self.problem = str(error)
                break
            if problem := answer.problem:
                mistakes, self.problem = mistakes + 1, problem
                if mistakes == _MAX_MISTAKES:
                    break
                messages.append(HumanMessage(f"Not usable: {problem}. Call a tool."))
                continue
            messages.append(answer.message)
            proposals: list[Proposal] = []
            for call in answer.calls:
                if call.name == "propose":
                    proposals, told = self._proposals(call)
                    mistakes += not proposals
                    self.problem = told
                else:
                    told = self._read(call)
                messages.append(ToolMessage(told, tool_call_id=call.id))
            if proposals or mistakes >= _MAX_MISTAKES:
                return proposals
        return []

    def _read(self, call: ToolCall) -> str:
        """Do what a reading tool does; tools that it doesn't have do nothing."""
        asked = understood(PLANNER_TOOLS, call.name, call.arguments)
        if isinstance(asked, str):
            return asked
        if isinstance(asked, SearchFindings):
            return self._search(asked.words)
        if self._desk is None:
            return "the source is not at hand"
        try:
            return read(self._desk, asked)
        except DeskError as error:
            return f"not done: {error}"

    def _search(self, words: str) -> str:
        hits = self._briefing.search(words)[:_MAX_HITS]
        if not hits:
            return "no finding holds these words"
        return "\n".join(
            quote(
                f"{hit.lever}={hit.value}: {hit.verdict}"
                + (f", {math.expm1(hit.gain):+.1%}" if hit.gain is not None else "")
                + f"\n{hit.mechanism}\nworth another try: {hit.reopen}",
                f"finding {hit.experiment} on {hit.challenge}",
            )
            for hit in hits
        )

    def _proposals(self, call: ToolCall) -> tuple[list[Proposal], str]:
        """Return what can be tried of what was proposed, or in words why none of it can."""
        given = parsed(Propose, call.arguments)
        if isinstance(given, str):
            return [], f"not accepted: {given}"
        good: list[Proposal] = []
        wrong: list[str] = []
        for number, idea in enumerate(given.ideas[: self._count], start=1):
            if why := self._objection(idea):
                wrong.append(f"idea {number}: {why}")
            else:
                good.append(self._proposal(idea))
        return good, "; ".join(wrong) or "accepted"

    def _objection(self, idea: Idea) -> str:
        """Return why an idea can't be tried; empty if it can."""
        briefing = self._briefing
        settings = {**briefing.champion_settings, **idea.levers}
        if why := briefing.catalogue.refusal(briefing.shape, settings, briefing.machine):
            return why
        changed = {n: v for n, v in idea.levers.items() if briefing.champion_settings[n] != v}
        if idea.kind == "levers":
            return "" if changed else "it changes nothing: the champion has these levers already"
        if not idea.files:
            return "an edit names the files that it touches"
        if self._desk is None:
            return "the source is not at hand, so it can't be edited"
        for path in idea.files:
            if path not in self._desk.tree.files:
                try:
                    self._desk.check_name(path)  # a new one
                except DeskError as error:
                    return str(error)
        return ""

    def _proposal(self, idea: Idea) -> Proposal:
        settings = {**self._briefing.champion_settings, **idea.levers}
        champion = self._briefing.champion_settings
        changed = [
            name for name in self._briefing.catalogue.levers if settings[name] != champion[name]
        ]
        is_edit = idea.kind == "edit"
        levers = [f"{name}={settings[name]}" for name in sorted(changed)]
        edited = ", ".join(sorted(set(idea.files)))
        lever = "+".join([EDIT] * is_edit + changed)
        known = {found.lever: found for found in self._own_calibration()}
        factor = known[lever].factor if lever in known else 1.0
        return Proposal(
            lever=lever,
            settings=settings,
            mechanism=f"{idea.mechanism.rstrip('. ')}. {idea.arithmetic}",
            predicted_gain=math.expm1(factor * math.log1p(idea.predicted_gain)),
            prior_gain=idea.predicted_gain,
            target=", ".join([f"edit {edited}", *levers]) if is_edit else "",
            risk=idea.risk,
            falsifier=idea.falsifier,
            agent=str(self._chat.spec),
        )

    def _own_calibration(self) -> list[Correction]:
        return [one for one in self._briefing.calibration if one.agent == str(self._chat.spec)]
