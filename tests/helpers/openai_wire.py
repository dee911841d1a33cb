"""OpenAI's chat completions: https://platform.openai.com/docs/api-reference/chat."""

import json
import time
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

_ERRORS = {  # status: type, code, message
    400: ("invalid_request_error", None, "Invalid request."),
    401: ("invalid_request_error", "invalid_api_key", "Incorrect API key provided: sk-wrong."),
    403: ("invalid_request_error", None, "Your project may not use this model."),
    404: ("invalid_request_error", "model_not_found", "The model `nil` does not exist."),
    429: ("requests", "rate_limit_exceeded", "Rate limit reached. Please try again later."),
    500: ("server_error", None, "The server had an error while processing your request."),
}
_NO_QUOTA = "You exceeded your current quota, please check your plan and billing details."


class OpenAIWire:
    """Satisfies `Wire`."""

    path = "/v1/chat/completions"

    def read(self, body: dict[str, Any], headers: dict[str, str]) -> Request:
        if not headers.get("authorization", "").removeprefix("Bearer").strip():
            raise RejectedError(Fail(401, "You didn't provide an API key."))
        messages = tuple(_read_message(message) for message in body.get("messages", ()))
        unanswered, stray = find_unpaired(messages)
        if not messages:
            raise RejectedError(Fail(400, "Invalid 'messages': empty array."))
        if unanswered:
            raise RejectedError(
                Fail(
                    400,
                    "An assistant message with 'tool_calls' must be followed by tool messages "
                    "responding to each 'tool_call_id'. The following tool_call_ids did not have "
                    f"response messages: {', '.join(unanswered)}",
                )
            )
        if stray:
            raise RejectedError(
                Fail(
                    400,
                    "Invalid parameter: messages with role 'tool' must be a response to a "
                    "preceeding message with 'tool_calls'.",
                )
            )
        return Request(
            wire="openai",
            model=body["model"],
            messages=messages,
            tools=tuple(tool["function"]["name"] for tool in body.get("tools") or ()),
            tool_choice=body.get("tool_choice"),
            stream=bool(body.get("stream")),
            raw=body,
            headers=headers,
        )

    def whole(self, request: Request, turn: Turn) -> dict[str, Any]:
        message: dict[str, Any] = {
            "role": "assistant",
            "content": None if turn.refused or (turn.calls and not turn.text) else turn.text,
            "refusal": turn.text if turn.refused else None,
            "annotations": [],
        }
        if turn.calls:
            message["tool_calls"] = [_tell_call(call, call.arguments) for call in turn.calls]
        choice = {"message": message, "logprobs": None, "finish_reason": _finish(turn)}
        return {
            **_head(request, "chat.completion"),
            "choices": [{"index": 0, **choice}],
            "usage": _usage(turn),
        }

    def events(self, request: Request, turn: Turn) -> list[bytes]:
        head = _head(request, "chat.completion.chunk")
        wants_usage = (request.raw.get("stream_options") or {}).get("include_usage")
        if wants_usage:
            head["usage"] = None
        chunks = []
        for delta in _deltas(turn):
            choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}
            chunks.append({**head, "choices": [choice]})
        chunks[-1]["choices"][0]["finish_reason"] = _finish(turn)
        if wants_usage:
            chunks.append({**head, "choices": [], "usage": _usage(turn)})
        return [*(_event(dump(chunk)) for chunk in chunks), _event("[DONE]")]

    def error(self, fail: Fail) -> dict[str, Any]:
        kind, code, message = _ERRORS.get(fail.status, _ERRORS[400 if fail.status < 500 else 500])
        if fail.code == "insufficient_quota":
            kind, message = fail.code, _NO_QUOTA
        told = {"message": fail.message or message, "type": kind}
        return {"error": {**told, "param": None, "code": fail.code or code}}

    def error_event(self, fail: Fail) -> bytes:
        return _event(dump(self.error(fail)))

    def models(self, names: Sequence[str]) -> dict[str, Any]:
        about = {"object": "model", "created": int(time.time()), "owned_by": "openai"}
        return {"object": "list", "data": [{"id": name, **about} for name in names]}


def _read_message(message: dict[str, Any]) -> Message:
    role = "system" if message["role"] == "developer" else message["role"]
    calls = (
        Call(call["function"]["name"], _read_arguments(call["function"]["arguments"]), call["id"])
        for call in message.get("tool_calls") or ()
    )
    text = join_text(message.get("content"))
    return Message(role, text, tuple(calls), message.get("tool_call_id", ""))


def _read_arguments(text: str) -> dict[str, Any]:
    """Arguments that aren't a JSON object are sent back as the model told them."""
    try:
        found = json.loads(text)
    except json.JSONDecodeError:
        found = None
    return found if isinstance(found, dict) else {"INVALID_JSON": text}


def _head(request: Request, kind: str) -> dict[str, Any]:
    return {
        "id": make_id("chatcmpl-"),
        "object": kind,
        "created": int(time.time()),
        "model": request.model,
        "service_tier": "default",
        "system_fingerprint": "fp_scripted",
    }


def _deltas(turn: Turn) -> Iterator[dict[str, Any]]:
    """The role comes first, then the text, then each call's name and arguments, then nothing."""
    key = "refusal" if turn.refused else "content"
    empty = "" if turn.text or not turn.calls else None
    yield {"role": "assistant", "content": None if turn.refused else empty, "refusal": None}
    for piece in pieces(turn.text):
        yield {key: piece}
    for index, call in enumerate(turn.calls):
        yield {"tool_calls": [{"index": index, **_tell_call(call, "")}]}
        for piece in pieces(call.arguments):
            yield {"tool_calls": [{"index": index, "function": {"arguments": piece}}]}
    yield {}


def _tell_call(call: Invocation, arguments: str) -> dict[str, Any]:
    function = {"name": call.name, "arguments": arguments}
    return {"id": call.id, "type": "function", "function": function}


def _finish(turn: Turn) -> str:
    return "tool_calls" if turn.calls else "stop"


def _usage(turn: Turn) -> dict[str, Any]:
    asked, told = turn.usage
    return {
        "prompt_tokens": asked,
        "completion_tokens": told,
        "total_tokens": asked + told,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
    }


def _event(data: str) -> bytes:
    return f"data: {data}\n\n".encode()
