"""The coder on a language model: a loop of tools on a desk with one variant's files.

The conversation ends with a tree, or with a reason why there is none: the model gave up, went round
in circles, ran out of steps, time or words. Each tool answers in text, errors included; a tool that
isn't offered does nothing.
"""

from collections import Counter
from dataclasses import dataclass, field

from langchain_core.messages import BaseMessage, HumanMessage, SystemMessage, ToolMessage

from slipstream.kernels.seeds import catalogue_of
from slipstream.kernels.variants import Tree
from slipstream.memory.records import Hypothesis, is_edit

from .chat import Chat, TooLongError
from .clients import Answer, ToolCall
from .coder_tools import (
    CODER_TOOLS,
    Check,
    Create,
    Delete,
    Edit,
    Finish,
    GiveUp,
    Run,
    SetLevers,
    Test,
)
from .desk import Desk, DeskError
from .prompting import brief_coder, prompt_of
from .quoting import quote
from .reading_tools import read
from .roles import CoderError, Workbench
from .tools import Arguments, schema_of, understood

MAX_STEPS = 60
_MAX_MISTAKES = 4
_SAME_TOLD, _SAME_ENOUGH = 2, 4
_MAX_TALKS = 8


class ModelCoder:
    """Satisfies `Coder`."""

    def __init__(self, chat: Chat) -> None:
        self.name = str(chat.spec)
        self._chat = chat
        self._talks: dict[str, _Talk] = {}

    def implement(self, hypothesis: Hypothesis, parent: Tree, bench: Workbench) -> Tree:
        """Return the tree that tests the hypothesis.

        Raises:
            CoderError: none came of it.
            OutOfMoneyError: the budget doesn't cover the next call.
        """
        start = parent.with_settings(hypothesis.settings)
        if not is_edit(hypothesis):
            return start
        talk = _Talk(self._chat, hypothesis, bench, Desk(start))
        talk.parent = parent
        self._talks[hypothesis.id] = talk
        while len(self._talks) > _MAX_TALKS:  # each holds a whole tree and all that was said
            self._talks.pop(next(iter(self._talks)))
        return talk.hold(brief_coder(hypothesis, bench))

    def repair(
        self, hypothesis: Hypothesis, tree: Tree, error: str, bench: Workbench
    ) -> Tree | None:
        """Go on with the conversation: the engine as it was handed in failed."""
        if not is_edit(hypothesis):
            return None  # levers don't get better by editing what they set
        talk = self._talks.get(hypothesis.id)
        if talk is None:  # of an earlier session
            talk = _Talk(self._chat, hypothesis, bench, Desk(tree))
            talk.parent, talk.name = tree, f"{hypothesis.id} repair of {tree.id}"
            self._talks[hypothesis.id] = talk
            told = f"{brief_coder(hypothesis, bench)}\n\nThe variant is written already, and fails:"
        else:
            told = "You handed the variant in, and it fails:"
        talk.repairs += 1
        try:
            return talk.hold(f"{told}\n{quote(error, 'the engine', 4000)}\nRepair it.")
        except CoderError as reason:
            self._chat.session.say("coder", f"{hypothesis.id}: no repair: {reason}", False)
            return None


@dataclass
class _Talk:
    """One conversation about one variant."""

    chat: Chat
    hypothesis: Hypothesis
    bench: Workbench
    desk: Desk
    parent: Tree | None = None
    repairs: int = 0
    name: str = ""  # of the conversation, if not the hypothesis'
    messages: list[BaseMessage] = field(default_factory=list)
    asked: int = 0
    _seen: Counter[tuple[str, str]] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        if not self.messages:
            self.messages.append(SystemMessage(prompt_of("coder", serves=self.desk.tree.serves)))

    def hold(self, told: str) -> Tree:
        """Return the tree that the model hands in.

        Raises:
            CoderError: it hands in none.
        """
        self.messages.append(HumanMessage(told))
        tools = [schema_of(name, arguments) for name, arguments in CODER_TOOLS.items()]
        mistakes = 0
        for _ in range(MAX_STEPS):
            if not self._has_time():
                raise CoderError("its time was over before the variant was done")
            answer = self._ask(tools)
            if problem := answer.problem:
                mistakes += 1
                if mistakes == _MAX_MISTAKES:
                    raise CoderError(f"{self.chat.spec}: {problem}, {mistakes} times")
                self.messages.append(HumanMessage(f"Not usable: {problem}. Call a tool."))
                continue
            mistakes = 0
            self.messages.append(answer.message)
            done = False
            for call in answer.calls:
                said, done_now = self._do(call)
                done = done or done_now
                self.messages.append(ToolMessage(self._remark(call, said), tool_call_id=call.id))
            if done:
                return self.desk.tree
        raise CoderError(f"not done after {MAX_STEPS} steps")

    def _has_time(self) -> bool:
        name = f"{self.name or self.hypothesis.id} has time for #{self.asked + 1}"
        return bool(self.chat.session.cassette.observe(name, lambda: self.bench.left_s > 0))

    def _ask(self, tools: list[dict[str, object]]) -> Answer:
        self.asked += 1
        occasion, experiment = self.name or self.hypothesis.id, self.hypothesis.id
        try:
            return self.chat.ask(
                self.messages, tools, occasion=f"{occasion} #{self.asked}", experiment=experiment
            )
        except TooLongError as error:
            raise CoderError(f"the conversation became too long: {error}") from error

    def _do(self, call: ToolCall) -> tuple[str, bool]:
        """Do what a tool does; return what it says, and whether the variant is done.

        Raises:
            CoderError: the model gives up.
        """
        asked = understood(CODER_TOOLS, call.name, call.arguments)
        if isinstance(asked, str):
            return asked, False
        try:
            match asked:
                case GiveUp():
                    raise CoderError(f"gave up: {asked.reason}")
                case Finish():
                    return self._finish()
                case Run():
                    return _quoted(self.bench.run(self.desk.tree), "it ran"), False
                case Check():
                    return self.bench.check(self.desk.tree), False
                case Test():
                    return self.bench.test(self.desk.tree, asked.kernel), False
                case _:
                    return self._on_desk(asked), False
        except DeskError as error:
            return f"not done: {error}", False

    def _on_desk(self, asked: Arguments) -> str:
        desk = self.desk
        match asked:
            case Edit():
                return desk.edit(asked.path, asked.old, asked.new)
            case Create():
                return desk.create(asked.path, asked.content)
            case Delete():
                return desk.delete(asked.path)
            case SetLevers():
                known = catalogue_of(desk.parent).levers
                unknown = [name for name in asked.levers if name not in known]
                if unknown:
                    raise DeskError(f"no lever {unknown[0]!r}; there are {', '.join(known)}")
                return desk.set_levers(asked.levers)
        return read(desk, asked)

    def _finish(self) -> tuple[str, bool]:
        same = self.parent is not None and self.desk.tree.engine_id == self.parent.engine_id
        if same and not self.repairs:
            return "not done: nothing is changed yet; edit the source, or give up", False
        return "handed in", True

    def _remark(self, call: ToolCall, said: str) -> str:
        """Say so when the same call had the same result before; it is the way into a doom loop.

        Raises:
            CoderError: it didn't listen.
        """
        key = (f"{call.name} {sorted(call.arguments.items())} {self.desk.tree.id}", said)
        self._seen[key] += 1
        count = self._seen[key]
        if count >= _SAME_ENOUGH:
            raise CoderError(f"went round in circles: {call.name} gave the same {count} times")
        if count >= _SAME_TOLD:
            return f"{said}\n[This call gave this very answer before. Do something else.]"
        return said


def _quoted(error: str, good: str) -> str:
    return quote(error, "the engine", 6000) if error else good
