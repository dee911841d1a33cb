"""A scripted model behind real HTTP: tests use the providers' own clients, and nothing is mocked.

with ModelServer(lambda request: Say("Hello")) as server:
    ChatOpenAI(model="m", base_url=server.url + "/v1", api_key="k").invoke("Hi")
    ChatAnthropic(model="m", base_url=server.url, api_key="k").invoke("Hi")
assert not server.errors
"""

import json
import socket
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from anthropic_wire import AnthropicWire
from exchanges import (
    BadArguments,
    Call,
    Cut,
    Fail,
    Garbage,
    Message,
    Refuse,
    RejectedError,
    Reply,
    Request,
    Say,
    Wire,
    make_id,
    make_turn,
)
from openai_wire import OpenAIWire

__all__ = [
    "BadArguments",
    "Call",
    "Cut",
    "Fail",
    "Garbage",
    "Message",
    "ModelServer",
    "Refuse",
    "Reply",
    "Request",
    "Say",
]

_OPENAI, _ANTHROPIC = OpenAIWire(), AnthropicWire()
_WIRES: dict[str, tuple[Wire, str]] = {  # path: format and how its calls' ids begin
    _OPENAI.path: (_OPENAI, "call_"),
    _ANTHROPIC.path: (_ANTHROPIC, "toolu_"),
}
_BEFORE_ERROR = 4  # events, the last of which has the first words


class ModelServer:
    """Answers each request with what the script says; the script is called from many threads.

    `requests` is all that was asked so far, the current request included. `errors` is what went
    wrong in the script (status 500), requests that a real server would not take (status 400) and
    paths that this one doesn't know (status 404).
    """

    def __init__(self, script: Callable[[Request], Reply], models: Sequence[str] = ("m",)) -> None:
        self.script, self.models = script, models
        self.requests: list[Request] = []
        self.errors: list[Exception] = []
        self._server = _Server(partial(_Handler, self), self.errors)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    @property
    def url(self) -> str:
        """Anthropic's base URL; OpenAI's has /v1 behind it."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        """Take no more requests; connections that are kept alive end too."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        self._server.hang_up()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Server(ThreadingHTTPServer):
    request_queue_size = 128

    def __init__(self, handler: Any, errors: list[Exception]) -> None:
        self._errors = errors
        self._connections: set[Any] = set()
        super().__init__(("127.0.0.1", 0), handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._connections.discard(request)
        super().shutdown_request(request)

    def hang_up(self) -> None:
        for connection in list(self._connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Keep what broke in the server itself; a client that has gone is no news."""
        error = sys.exception()
        if isinstance(error, Exception) and not isinstance(error, OSError):
            self._errors.append(error)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def __init__(self, owner: ModelServer, *arguments: Any) -> None:
        self.owner = owner
        super().__init__(*arguments)

    def do_GET(self) -> None:
        wire = _ANTHROPIC if self.headers.get("anthropic-version") else _OPENAI
        if self.path.partition("?")[0] == "/v1/models":
            self._send_json(200, wire.models(self.owner.models))
        else:
            self._send_unknown()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        wire, prefix = _WIRES.get(self.path.partition("?")[0], (None, ""))
        if wire is None:
            self._send_unknown()
            return
        headers = {name.lower(): value for name, value in self.headers.items()}
        try:
            request = wire.read(json.loads(body), headers)
        except RejectedError as error:
            self.owner.errors.append(error)
            self._send_json(error.fail.status, wire.error(error.fail))
            return
        self.owner.requests.append(request)
        try:
            reply = self.owner.script(request)
        except Exception as error:
            self.owner.errors.append(error)
            told = wire.error(Fail(500, f"{type(error).__name__}: {error}"))
            self._send_json(500, told, {"x-should-retry": "false"})
            return
        self._answer(wire, prefix, request, reply)

    def _answer(self, wire: Wire, prefix: str, request: Request, reply: Reply) -> None:
        match reply:
            case Fail(midway=True) if request.stream:
                begun = wire.events(request, make_turn(Say("Let me think about it"), prefix))
                self._stream([*begun[:_BEFORE_ERROR], wire.error_event(reply)])
            case Fail(status, retry_after=wait):
                headers = {} if wait is None else {"retry-after": f"{wait:g}"}
                self._send_json(status, wire.error(reply), headers)
            case Garbage(garbage, content_type):
                self._send(200, garbage.encode(), content_type)
            case _ if request.stream:
                events = wire.events(request, make_turn(reply, prefix))
                self._stream(events, reply.after if isinstance(reply, Cut) else None)
            case _:
                body = json.dumps(wire.whole(request, make_turn(reply, prefix))).encode()
                end = reply.after if isinstance(reply, Cut) else None
                self._send(200, body, "application/json", end=end)

    def _stream(self, events: Iterable[bytes], end: int | None = None) -> None:
        """Send events as chunks; after `end` bytes of them the connection is closed."""
        self._begin(200, {"content-type": "text/event-stream", "transfer-encoding": "chunked"})
        told = 0
        for event in events:
            piece = event if end is None else event[: end - told]
            if not piece:
                self.close_connection = True
                return
            self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            told += len(piece)
        self.wfile.write(b"0\r\n\r\n")

    def _send_json(
        self, status: int, body: dict[str, Any], headers: dict[str, str] | None = None
    ) -> None:
        self._send(status, json.dumps(body).encode(), "application/json", headers)

    def _send(
        self,
        status: int,
        body: bytes,
        content_type: str,
        headers: dict[str, str] | None = None,
        end: int | None = None,
    ) -> None:
        length = {"content-type": content_type, "content-length": str(len(body))}
        self._begin(status, {**length, **(headers or {})})
        self.wfile.write(body[:end])
        self.close_connection = self.close_connection or end is not None

    def _begin(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        name = make_id("req_")
        for key, value in {**headers, "x-request-id": name, "request-id": name}.items():
            self.send_header(key, value)
        self.end_headers()

    def _send_unknown(self) -> None:
        what = f"Unknown request URL: {self.command} {self.path}."
        self.owner.errors.append(LookupError(what))
        self._send_json(404, _OPENAI.error(Fail(404, what, code="unknown_url")))

    def log_message(self, format: str, *arguments: Any) -> None:
        """Tests read `requests`."""
