"""LangChain's clients behind one small value: what a model is asked with, and what it answered."""

import ipaddress
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)

from .prices import Usage
from .specs import ModelSpec

_TIMEOUT_S = 300.0
# How LangChain names tokens that were written to a cache.
_WRITTEN = ("cache_creation", "ephemeral_5m_input_tokens", "ephemeral_1h_input_tokens")


@dataclass(frozen=True)
class ToolCall:
    """A tool that a model wants to use."""

    name: str
    arguments: dict[str, Any]
    id: str


@dataclass(frozen=True)
class Answer:
    """What a model said.

    Attributes:
        malformed: what can't be read in it; empty if all can.
        refused: it won't answer.
    """

    text: str
    calls: tuple[ToolCall, ...] = ()
    malformed: str = ""
    refused: bool = False
    usage: Usage = field(default_factory=Usage)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Answer":
        """Return what `asdict` made JSON of."""
        calls = tuple(ToolCall(**call) for call in data["calls"])
        return cls(**{**data, "calls": calls, "usage": Usage(**data["usage"])})

    @property
    def problem(self) -> str:
        """What keeps the answer from being acted on; empty if nothing does."""
        if self.refused:
            return "you refused"
        return self.malformed or ("" if self.calls else "no tool was called")

    @property
    def message(self) -> AIMessage:
        """The answer as a message of the conversation."""
        calls = [{"name": c.name, "args": c.arguments, "id": c.id} for c in self.calls]
        return AIMessage(self.text, tool_calls=calls)


def make_client(spec: ModelSpec) -> BaseChatModel:
    """Return LangChain's client. It is imported here, for those who have a model."""
    common: dict[str, Any] = {"model": spec.name, "api_key": spec.key(), "max_retries": 0}
    if spec.base_url:
        common["base_url"] = spec.base_url
    common |= {"timeout": _TIMEOUT_S, "stream_usage": True}
    if spec.provider == "anthropic":
        from langchain_anthropic import ChatAnthropic

        return ChatAnthropic(**common)
    from langchain_openai import ChatOpenAI

    if spec.base_url:  # compatible servers have this API, and rarely the newer one
        common["use_responses_api"] = False
    return ChatOpenAI(**common)


def stream(
    client: BaseChatModel,
    spec: ModelSpec,
    messages: Sequence[BaseMessage],
    tools: Sequence[dict[str, Any]],
    max_tokens: int,
    force: str | None,
) -> Iterator[Any]:
    """Call a model; streamed, so that a long answer shows progress and outlives no proxy."""
    bound: Any = client
    if tools:
        bound = client.bind_tools(list(tools), **({"tool_choice": force} if force else {}))
    yield from bound.bind(**_limit(spec, max_tokens)).stream(_cached(messages, spec))


def _limit(spec: ModelSpec, max_tokens: int) -> dict[str, Any]:
    if spec.provider == "anthropic":
        return {"max_tokens": max_tokens}
    if spec.base_url is None:
        return {"max_completion_tokens": max_tokens}
    return {"extra_body": {"max_tokens": max_tokens}}  # what every compatible server knows


def _cached(messages: Sequence[BaseMessage], spec: ModelSpec) -> Sequence[BaseMessage]:
    """Let Anthropic keep the long beginning of a conversation; OpenAI does that by itself."""
    if spec.provider != "anthropic":
        return messages
    marked: list[BaseMessage] = []
    for index, message in enumerate(messages):
        if index < 2 and isinstance(message, SystemMessage | HumanMessage):
            kept = {"cache_control": {"type": "ephemeral"}}
            block = {"type": "text", "text": str(message.content), **kept}
            marked.append(type(message)(content=[block]))
        else:
            marked.append(message)
    return marked


def answer_of(whole: AIMessageChunk | None) -> Answer:
    """Return what a streamed answer comes to; malformed where it can't be acted on."""
    if whole is None:
        return Answer("", malformed="an empty answer")
    found = whole.usage_metadata
    details: Any = (found.get("input_token_details") if found else None) or {}
    usage = Usage(
        input=found["input_tokens"] if found else 0,
        output=found["output_tokens"] if found else 0,
        cached_read=details.get("cache_read") or 0,
        cached_write=sum(details.get(name) or 0 for name in _WRITTEN),
    )
    calls = tuple(
        ToolCall(call["name"], _clean(call["args"]), call["id"] or f"call-{index}")
        for index, call in enumerate(whole.tool_calls)
    )
    ends = (whole.response_metadata.get(n) for n in ("finish_reason", "stop_reason", "status"))
    why = next((end for end in ends if end), None)
    refused = bool(whole.additional_kwargs.get("refusal")) or why in ("refusal", "content_filter")
    malformed = ""
    if whole.invalid_tool_calls:
        bad = whole.invalid_tool_calls[0]
        malformed = f"the arguments of {bad['name']} are not JSON: {str(bad['args'])[:200]!r}"
    elif why in (
        "length",
        "max_tokens",
        "incomplete",
    ):  # LangChain closes open brackets: calls look whole
        malformed = "the answer was cut off: it was too long"
    elif why is None:
        malformed, usage = "the answer broke off", Usage()  # what it cost in the end isn't known
    elif not calls and not whole.text and not refused:
        malformed = "an empty answer"
    return Answer(_clean(str(whole.text)), calls, malformed, refused, usage)


def plain(message: BaseMessage) -> str:
    """Return a message as one text, for the tape."""
    role = {SystemMessage: "system", HumanMessage: "user", ToolMessage: "tool"}.get(type(message))
    if role is not None:
        return f"{role}: {message.content}"
    calls = message.tool_calls if isinstance(message, AIMessage) else []
    shown = "".join(f"\n→ {c['name']} {json.dumps(c['args'], sort_keys=True)}" for c in calls)
    return f"assistant: {message.content}{shown}"


def is_local(spec: ModelSpec) -> bool:
    """Whether a model runs on a server nearby, where no one sends a bill."""
    host = urlsplit(spec.base_url or "").hostname or ""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host != "" and ("." not in host or host.endswith(".local"))
    return address.is_private or address.is_loopback


def _clean(value: Any) -> Any:
    """Return a value of JSON's kinds whose texts can be written down, whatever they hold."""
    if isinstance(value, str):
        whole = value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return whole.replace("\0", "")
    if isinstance(value, dict):
        return {_clean(name): _clean(held) for name, held in value.items()}
    return [_clean(held) for held in value] if isinstance(value, list) else value
