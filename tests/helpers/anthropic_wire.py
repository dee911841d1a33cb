"""Anthropic's messages: https://platform.claude.com/docs/en/api/messages."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from exchanges import (
    Call,
    Fail,
    Invocation,
    Message,
    RejectedError,
    Request,
    Turn,
    dump,
    find_unpaired,
    join_text,
    make_id,
    pieces,
)

_ERRORS = {  # status: type, message
    400: ("invalid_request_error", "Invalid request."),
    401: ("authentication_error", "invalid x-api-key"),
    403: ("permission_error", "Your API key may not use this resource."),
    404: ("not_found_error", "model: nil"),
    413: ("request_too_large", "Request exceeds the maximum size"),
    429: ("rate_limit_error", "This request would exceed your rate limit."),
    500: ("api_error", "Internal server error"),
    529: ("overloaded_error", "Overloaded"),
}


class AnthropicWire:
    """Satisfies `Wire`."""

    path = "/v1/messages"

    def read(self, body: dict[str, Any], headers: dict[str, str]) -> Request:
        if not headers.get("x-api-key") and not headers.get("authorization"):
            raise RejectedError(Fail(401, "x-api-key header is required"))
        if not headers.get("anthropic-version"):
            raise RejectedError(Fail(400, "anthropic-version: header is required"))
        if not body.get("max_tokens"):
            raise RejectedError(Fail(400, "max_tokens: Field required"))
        messages = tuple(_read_messages(body))
        _check(body.get("messages", []), messages)
        return Request(
            wire="anthropic",
            model=body["model"],
            messages=messages,
            tools=tuple(tool["name"] for tool in body.get("tools") or ()),
            tool_choice=body.get("tool_choice"),
            stream=bool(body.get("stream")),
            raw=body,
            headers=headers,
        )

    def whole(self, request: Request, turn: Turn) -> dict[str, Any]:
        content: list[dict[str, Any]] = []
        if turn.text:
            content.append({"type": "text", "text": turn.text})
        content += [{**_open_call(call), "input": _value(call.arguments)} for call in turn.calls]
        head = _head(request)
        return {**head, "content": content, **_stop(turn), "usage": _usage(turn)}

    def events(self, request: Request, turn: Turn) -> list[bytes]:
        return [
            f"event: {event['type']}\ndata: {dump(event)}\n\n".encode()
            for event in _events(request, turn)
        ]

    def error(self, fail: Fail) -> dict[str, Any]:
        kind, message = _ERRORS.get(fail.status, _ERRORS[400 if fail.status < 500 else 500])
        error: dict[str, Any] = {"type": kind, "message": fail.message or message}
        if fail.code:
            error["details"] = {"error_code": fail.code}
        return {"type": "error", "error": error, "request_id": make_id("req_")}

    def error_event(self, fail: Fail) -> bytes:
        return f"event: error\ndata: {dump(self.error(fail))}\n\n".encode()

    def models(self, names: Sequence[str]) -> dict[str, Any]:
        about = {"type": "model", "created_at": "2026-01-01T00:00:00Z"}
        data = [{"id": name, "display_name": name, **about} for name in names]
        return {"data": data, "has_more": False, "first_id": names[0], "last_id": names[-1]}


def _read_messages(body: dict[str, Any]) -> Iterator[Message]:
    if system := body.get("system"):
        yield Message("system", join_text(system))
    for message in body.get("messages", []):
        blocks = _blocks(message)
        if message["role"] == "user":
            yield from _read_user(blocks)
        else:
            calls = (block for block in blocks if block["type"] == "tool_use")
            made = tuple(Call(call["name"], call["input"], call["id"]) for call in calls)
            yield Message(message["role"], join_text(blocks), made)


def _blocks(message: dict[str, Any]) -> list[dict[str, Any]]:
    content = message["content"]
    if isinstance(content, str):
        return [{"type": "text", "text": content}] if content else []
    return list(content)


def _read_user(blocks: Sequence[dict[str, Any]]) -> Iterator[Message]:
    """A user's message carries what tools answered, and then perhaps what the user says."""
    for block in blocks:
        if block["type"] == "tool_result":
            text = join_text(block.get("content"))
            yield Message("tool", text, answers=block["tool_use_id"])
    said = [block for block in blocks if block["type"] != "tool_result"]
    if said:
        yield Message("user", join_text(said))


def _check(told: Sequence[dict[str, Any]], messages: Sequence[Message]) -> None:
    """Raise `RejectedError` for conversations that the real server does not take."""
    if not told:
        raise RejectedError(Fail(400, "messages: at least one message is required"))
    for index, message in enumerate(told):
        is_last_answer = index == len(told) - 1 and message["role"] == "assistant"
        if not message["content"] and not is_last_answer:
            why = "all messages must have non-empty content except for the optional final assistant"
            raise RejectedError(Fail(400, f"messages.{index}: {why} message"))
        for block in _blocks(message):
            if block["type"] == "text" and not block["text"]:
                raise RejectedError(Fail(400, "messages: text content blocks must be non-empty"))
            if block["type"] == "tool_use" and not isinstance(block["input"], dict):
                why = "tool_use.input: Input should be a valid dictionary"
                raise RejectedError(Fail(400, f"messages.{index}.content: {why}"))
    unanswered, stray = find_unpaired(messages)
    if unanswered:
        found = "`tool_use` ids were found without `tool_result` blocks immediately after"
        raise RejectedError(Fail(400, f"messages: {found}: {', '.join(unanswered)}."))
    if stray:
        found = "unexpected `tool_use_id` found in `tool_result` blocks"
        raise RejectedError(Fail(400, f"messages: {found}: {', '.join(stray)}."))


def _events(request: Request, turn: Turn) -> Iterator[dict[str, Any]]:
    begun = {**_usage(turn), "output_tokens": 1}
    empty: dict[str, Any] = {
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": begun,
    }
    yield {"type": "message_start", "message": {**_head(request), **empty}}
    yield {"type": "ping"}
    if turn.text:
        deltas = [{"type": "text_delta", "text": piece} for piece in pieces(turn.text)]
        yield from _block(0, {"type": "text", "text": ""}, deltas)
    for index, call in enumerate(turn.calls, start=bool(turn.text)):
        told = ["", *pieces(call.arguments)]
        deltas = [{"type": "input_json_delta", "partial_json": piece} for piece in told]
        yield from _block(index, _open_call(call), deltas)
    yield {"type": "message_delta", "delta": _stop(turn), "usage": _usage(turn)}
    yield {"type": "message_stop"}


def _block(
    index: int, block: dict[str, Any], deltas: Sequence[dict[str, str]]
) -> Iterator[dict[str, Any]]:
    yield {"type": "content_block_start", "index": index, "content_block": block}
    for delta in deltas:
        yield {"type": "content_block_delta", "index": index, "delta": delta}
    yield {"type": "content_block_stop", "index": index}


def _head(request: Request) -> dict[str, Any]:
    about = {"type": "message", "role": "assistant", "model": request.model}
    return {"id": make_id("msg_"), **about}


def _open_call(call: Invocation) -> dict[str, Any]:
    return {"type": "tool_use", "id": call.id, "name": call.name, "input": {}}


def _value(arguments: str) -> Any:
    try:
        return json.loads(arguments)
    except json.JSONDecodeError:
        return arguments


def _stop(turn: Turn) -> dict[str, Any]:
    stopped: dict[str, Any] = {"stop_reason": "tool_use" if turn.calls else "end_turn"}
    if turn.refused:
        details = {"type": "refusal", "category": None, "explanation": turn.text or None}
        stopped = {"stop_reason": "refusal", "stop_details": details}
    return {**stopped, "stop_sequence": None}


def _usage(turn: Turn) -> dict[str, Any]:
    asked, told = turn.usage
    cached = {"cache_creation_input_tokens": 0, "cache_read_input_tokens": 0}
    return {"input_tokens": asked, **cached, "output_tokens": told}
