"""What a scripted model is asked and what it may answer: the same values on both wires."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, Protocol

_NUMBERS = count(1)
USAGE = (100, 20)  # input and output tokens


@dataclass(frozen=True)
class Call:
    """A tool call; without an id of its own it gets one on the wire."""

    name: str
    arguments: dict[str, Any]
    id: str = ""


@dataclass(frozen=True)
class Message:
    """One message of a request. Text parts are joined by line breaks, images are left out."""

    role: str  # "system" (also for "developer"), "user", "assistant" or "tool"
    text: str
    calls: tuple[Call, ...] = ()  # of an assistant's message
    answers: str = ""  # id of the tool call that a tool's message answers


@dataclass(frozen=True)
class Request:
    """What was asked; `tool_choice`, `raw` and `headers` are as on the wire."""

    wire: str  # "openai" or "anthropic"
    model: str
    messages: tuple[Message, ...]  # the system prompt comes first
    tools: tuple[str, ...]  # names
    tool_choice: Any
    stream: bool
    raw: dict[str, Any]
    headers: dict[str, str]  # names in lower case


@dataclass(frozen=True)
class Say:
    """Text, tool calls or both; why it finished follows from the calls."""

    text: str = ""
    calls: tuple[Call, ...] = ()
    usage: tuple[int, int] = USAGE


@dataclass(frozen=True)
class Refuse:
    """OpenAI: `refusal` instead of content. Anthropic: stop reason "refusal"; "" is no content."""

    text: str = "I can't help with that."


@dataclass(frozen=True)
class Fail:
    """An error's status and body; without a message the wire's usual one for that status."""

    status: int
    message: str = ""
    retry_after: float | None = None  # seconds
    code: str = ""
    midway: bool = False  # status 200, a few words and then the error as an event, if streamed


@dataclass(frozen=True)
class Cut:
    """The connection ends after so many bytes of the body, which is promised to be longer."""

    after: int = 80


@dataclass(frozen=True)
class BadArguments:
    """A tool call whose arguments are this string, JSON or not.

    Anthropic's arguments are a value inside the body unless streamed: what isn't JSON is a string.
    """

    name: str
    arguments: str


@dataclass(frozen=True)
class Garbage:
    """Status 200 and a body that is no answer."""

    body: str = "<html>502</html>"
    content_type: str = "text/html"


Told = Say | Refuse | Cut | BadArguments  # what begins, at least, as an answer
Reply = Told | Fail | Garbage


class RejectedError(Exception):
    """A request that the real server would not take."""

    def __init__(self, fail: Fail) -> None:
        super().__init__(fail.message)
        self.fail = fail


@dataclass(frozen=True)
class Invocation:
    """A tool call as it is told: with an id, and its arguments as text."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class Turn:
    """A reply in the terms that both wires share."""

    text: str = ""
    calls: tuple[Invocation, ...] = ()
    refused: bool = False
    usage: tuple[int, int] = USAGE


class Wire(Protocol):
    """One provider's format over HTTP."""

    @property
    def path(self) -> str:
        """Where requests are posted."""

    def read(self, body: dict[str, Any], headers: dict[str, str]) -> Request:
        """Return what is asked; raise `RejectedError` as the real server would."""

    def whole(self, request: Request, turn: Turn) -> dict[str, Any]:
        """Return the body of an answer in one piece."""

    def events(self, request: Request, turn: Turn) -> Sequence[bytes]:
        """Return the server-sent events of a streamed answer."""

    def error(self, fail: Fail) -> dict[str, Any]:
        """Return an error's body."""

    def error_event(self, fail: Fail) -> bytes:
        """Return the server-sent event of an error inside a stream."""

    def models(self, names: Sequence[str]) -> dict[str, Any]:
        """Return the list of models."""


def make_id(prefix: str) -> str:
    """Return a new id."""
    return f"{prefix}{next(_NUMBERS):024d}"


def make_turn(reply: Told, prefix: str) -> Turn:
    """Say what a reply tells; calls without an id get one with this prefix."""
    match reply:
        case Say(text, calls, usage):
            made = (Invocation(c.id or make_id(prefix), c.name, dump(c.arguments)) for c in calls)
            return Turn(text, tuple(made), usage=usage)
        case Refuse(text):
            return Turn(text, refused=True)
        case BadArguments(name, arguments):
            return Turn(calls=(Invocation(make_id(prefix), name, arguments),))
        case Cut(after):
            return Turn("word " * (after // 5 + 20))  # longer than what is sent of it


def dump(value: Any) -> str:
    """Return JSON as the servers write it."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def pieces(text: str, size: int = 7) -> list[str]:
    """Cut text as a stream tells it."""
    return [text[at : at + size] for at in range(0, len(text), size)]


def join_text(content: str | Sequence[Mapping[str, Any]] | None) -> str:
    """Return the text of a message's content, which is a string or a list of parts."""
    if content is None or isinstance(content, str):
        return content or ""
    return "\n".join(part["text"] for part in content if part.get("type") == "text")


def find_unpaired(messages: Sequence[Message]) -> tuple[list[str], list[str]]:
    """Return the ids of calls that the next messages don't answer, and of answers to no call."""
    unanswered: list[str] = []
    stray: list[str] = []
    awaited: list[str] = []
    for message in messages:
        if message.role != "tool":
            unanswered += awaited
            awaited = [call.id for call in message.calls]
        elif message.answers in awaited:
            awaited.remove(message.answers)
        else:
            stray.append(message.answers)
    return unanswered + awaited, stray
