"""What comes out of the providers' clients when a server fails, and what a retry may go by."""

import json
import threading
from typing import Any

import anthropic
import httpx2
import openai
import pytest
from langchain_core.exceptions import ModelConnectionError, ModelError, ModelTimeoutError
from model_server import Cut, Fail, Garbage, ModelServer, Reply, Request, Say
from real_clients import WAYS, WIRES, ask, make_client

STATUSES = {  # status: the SDK's exception, and whether langchain says that a retry may help
    400: ("BadRequestError", False),
    401: ("AuthenticationError", False),
    403: ("PermissionDeniedError", False),
    404: ("NotFoundError", False),
    429: ("RateLimitError", True),
    500: ("InternalServerError", True),
    529: ("InternalServerError", True),
}
SDKS: dict[str, Any] = {"openai": openai, "anthropic": anthropic}
each_wire = pytest.mark.parametrize("wire", WIRES)
each_way = pytest.mark.parametrize("way", WAYS)


def fail(reply: Reply, wire: str, way: str) -> Exception:
    """Return what a client raises."""
    with ModelServer(lambda request: reply) as server, pytest.raises(Exception) as caught:  # noqa: PT011
        ask(make_client(server, wire), way)
    assert not server.errors
    return caught.value


@each_wire
@each_way
@pytest.mark.parametrize("status", STATUSES)
def test_a_status_is_the_sdks_exception(wire: str, way: str, status: int) -> None:
    name, is_retryable = STATUSES[status]
    error = fail(Fail(status, "because"), wire, way)
    assert isinstance(error, getattr(SDKS[wire], name))
    assert isinstance(error, ModelError)
    assert (error.is_retryable, vars(error)["status_code"]) == (is_retryable, status)
    assert "because" in str(error)
    assert "retry-after" not in vars(error)["response"].headers


@each_wire
@each_way
@pytest.mark.parametrize("status", [429, 529])
def test_the_wait_can_be_read(wire: str, way: str, status: int) -> None:
    error: Any = fail(Fail(status, retry_after=1.5), wire, way)
    assert error.response.headers["retry-after"] == "1.5"


@each_way
def test_an_empty_account_looks_like_a_rate_limit(way: str) -> None:
    """langchain calls it retryable all the same: only the code tells."""
    error: Any = fail(Fail(429, code="insufficient_quota"), "openai", way)
    assert (error.status_code, error.code, error.is_retryable) == (429, "insufficient_quota", True)
    assert "quota" in str(error)
    limited: Any = fail(Fail(429), "openai", way)
    assert limited.code == "rate_limit_exceeded"


@each_way
def test_anthropics_errors_have_a_type_and_perhaps_a_code(way: str) -> None:
    error: Any = fail(Fail(529, code="too_busy"), "anthropic", way)
    assert isinstance(error, anthropic.OverloadedError)
    assert (error.type, error.error_code) == ("overloaded_error", "too_busy")


@each_wire
@each_way
def test_without_retries_a_failure_is_asked_once(wire: str, way: str) -> None:
    with ModelServer(lambda request: Fail(500)) as server:
        with pytest.raises(ModelError):
            ask(make_client(server, wire), way)
        assert len(server.requests) == 1


@each_wire
def test_the_clients_own_retries_ask_again(wire: str) -> None:
    def script(request: Request) -> Reply:
        return Fail(429, retry_after=0.01) if len(server.requests) == 1 else Say("then")

    with ModelServer(script) as server:
        assert ask(make_client(server, wire, max_retries=1), "invoke").content == "then"


@each_wire
@pytest.mark.parametrize("status", [500, 529])
def test_an_error_inside_a_stream_has_no_class_of_its_own(wire: str, status: int) -> None:
    """No `ModelError`, and the status is 200 or missing: only `type` tells what it was."""
    error: Any = fail(Fail(status, "because", midway=True), wire, "stream")
    assert type(error) is (openai.APIError if wire == "openai" else anthropic.APIStatusError)
    assert not isinstance(error, ModelError)
    assert getattr(error, "status_code", None) == (None if wire == "openai" else 200)
    overloaded = wire == "anthropic" and status == 529
    usual = "server_error" if wire == "openai" else "api_error"
    assert error.type == ("overloaded_error" if overloaded else usual)
    assert "because" in str(error)


@each_wire
@each_way
@pytest.mark.parametrize("after", [0, 80, 1500])
def test_a_cut_connection(wire: str, way: str, after: int) -> None:
    """Anthropic's SDK lets the transport's own exception through once a stream has begun."""
    error = fail(Cut(after), wire, way)
    if (wire, way) == ("anthropic", "stream"):
        assert type(error) is httpx2.RemoteProtocolError
    else:
        assert isinstance(error, SDKS[wire].APIConnectionError)
        assert isinstance(error, ModelConnectionError)


@each_wire
def test_a_cut_stream_may_have_told_something(wire: str) -> None:
    told: list[str] = []
    broken = (ModelConnectionError, httpx2.RemoteProtocolError)
    with ModelServer(lambda request: Cut(1500)) as server, pytest.raises(broken):
        told.extend(chunk.text for chunk in make_client(server, wire).stream("Hi"))
    assert "word" in "".join(told)


@each_wire
@each_way
def test_what_is_no_answer(wire: str, way: str) -> None:
    error = fail(Garbage(), wire, way)
    if way == "stream":
        assert type(error) is ValueError
        assert str(error) == "No generation chunks were returned"
    else:
        assert type(error) is (ValueError if wire == "openai" else AttributeError)


@each_wire
@each_way
def test_what_claims_to_be_an_answer(wire: str, way: str) -> None:
    reply = Garbage("{oops", "application/json")
    if way == "stream":
        reply = Garbage("event: message_start\ndata: {oops\n\n", "text/event-stream")
    assert type(fail(reply, wire, way)) is json.JSONDecodeError


@each_wire
@each_way
def test_a_server_that_is_gone(wire: str, way: str) -> None:
    with ModelServer(lambda request: Say("Hello")) as server:
        client = make_client(server, wire)
        ask(client, way)
    with pytest.raises(ModelConnectionError):
        ask(client, way)


@each_wire
@each_way
def test_a_server_that_is_silent(wire: str, way: str) -> None:
    asked_enough = threading.Event()

    def script(request: Request) -> Reply:
        asked_enough.wait(5)
        return Say("too late")

    with ModelServer(script) as server:
        with pytest.raises(ModelTimeoutError) as caught:
            ask(make_client(server, wire, timeout=0.1), way)
        asked_enough.set()
    assert isinstance(caught.value, SDKS[wire].APITimeoutError)


@each_wire
def test_a_broken_script_is_told_and_kept(wire: str) -> None:
    def script(request: Request) -> Reply:
        raise KeyError("lever")

    with ModelServer(script) as server, pytest.raises(ModelError, match="KeyError: 'lever'"):
        ask(make_client(server, wire, max_retries=2), "invoke")
    assert [type(error) for error in server.errors] == [KeyError]


def test_an_unknown_path_is_told_and_kept() -> None:
    """Some of OpenAI's models are asked at /v1/responses unless told otherwise."""
    with ModelServer(lambda request: Say("Hello")) as server:
        with pytest.raises(openai.NotFoundError, match="/v1/responses"):
            ask(make_client(server, "openai", model="gpt-5-codex"), "invoke")
        assert len(server.errors) == 1
        chat = make_client(server, "openai", model="gpt-5-codex", use_responses_api=False)
        assert ask(chat, "invoke").content == "Hello"
