"""The challenge's contract over HTTP, for an engine in this process; standard library only.

GET /v1/models, POST /v1/completions and /v1/chat/completions; greedy, whole answers, one at a time.
Prompts are text or token ids. `return_token_ids`, `ignore_eos`, `add_special_tokens` and
`prompt_logprobs` are vLLM's, and so is the way in which `logprobs` names tokens by their ids.
"""

import json
import os
import threading
from http.client import HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Protocol

_MOST_BYTES = 64 << 20
_SOME, _ALL = 64, 1 << 20


class Backend(Protocol):
    """What answers. Prompts and answers are token ids."""

    def generate(self, prompt: list[int], num_tokens: int, ignore_eos: bool) -> list[int]:
        """Return greedy tokens, as many as asked for unless one of them ends the text."""
        ...

    def logprobs(self, prompt: list[int], count: int) -> list[tuple[int, float]]:
        """Return the log-probabilities of the likeliest tokens after the prompt, in order.

        Args:
            count: at least so many of them; all, if it is more than there are.
        """
        ...

    def encode(self, text: str, special: bool) -> list[int]:
        """Return the tokens of a text."""
        ...

    def decode(self, tokens: list[int]) -> str:
        """Return the text of tokens."""
        ...

    def chat(self, messages: list[dict[str, Any]]) -> list[int]:
        """Return the tokens of a conversation, up to where the answer begins."""
        ...


class RequestError(ValueError):
    """A request that can't be answered."""


def settings() -> dict[str, str]:
    """Return the levers, from the file beside this one."""
    found: dict[str, str] = json.loads(Path(__file__).with_name("levers.json").read_text())
    return found


def num_threads(value: str) -> int:
    """Return how many threads a lever's value stands for."""
    return len(os.sched_getaffinity(0)) if value == "all" else int(value)


def serve(backend: Backend) -> None:
    """Answer requests at HOST and PORT, under SERVED_MODEL_NAME, until the process ends."""
    name = os.environ["SERVED_MODEL_NAME"]
    alone = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True
        wbufsize = -1  # head and body in one packet

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            if self.path != "/v1/models":
                self._send(404, _error(f"no {self.path} here"))
                return
            self._send(200, {"object": "list", "data": [{"id": name, "object": "model"}]})

        def do_POST(self) -> None:
            answer = {"/v1/completions": _complete, "/v1/chat/completions": _chat}.get(self.path)
            size = int(self.headers.get("content-length") or 0)
            if answer is None or size > _MOST_BYTES:
                self.close_connection = True
                self._send(404 if answer is None else 413, _error(f"{self.path}, {size} bytes"))
                return
            try:
                request = json.loads(self.rfile.read(size))
                with alone:
                    self._send(200, {**answer(backend, request), "model": name})
            except (ValueError, KeyError, TypeError) as error:
                self._send(400, _error(f"{type(error).__name__}: {error}"))
            except (OSError, HTTPException) as error:  # of what is behind it
                self._send(500, _error(f"{type(error).__name__}: {error}"))

        def _send(self, status: int, body: dict[str, Any]) -> None:
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
            self.wfile.flush()

    server = ThreadingHTTPServer((os.environ["HOST"], int(os.environ["PORT"])), Handler)
    server.daemon_threads = True
    server.serve_forever()


def _error(text: str) -> dict[str, Any]:
    return {"error": {"message": text, "type": "invalid_request_error", "code": None}}


def _complete(backend: Backend, request: dict[str, Any]) -> dict[str, Any]:
    _greedy(request)
    prompt = request["prompt"]
    if isinstance(prompt, str):
        prompt = backend.encode(prompt, request.get("add_special_tokens", True))
    if not prompt or not all(type(token) is int for token in prompt):
        raise RequestError("prompt: a text or a list of token ids, not empty")
    wanted = request.get("max_tokens", 16)
    choice: dict[str, Any] = {"index": 0, "finish_reason": "length"}
    if (top := request.get("prompt_logprobs")) is not None:
        choice["prompt_logprobs"] = _of_prompt(backend, prompt, top)
    if (top := request.get("logprobs")) is not None:
        tokens, choice["logprobs"] = _step_by_step(backend, prompt, wanted, top)
    else:
        tokens = backend.generate(prompt, wanted, request.get("ignore_eos", False))
    choice["text"] = backend.decode(tokens)
    if request.get("return_token_ids"):
        choice["token_ids"] = tokens
    return {"object": "text_completion", "choices": [choice], "usage": _usage(prompt, tokens)}


def _chat(backend: Backend, request: dict[str, Any]) -> dict[str, Any]:
    _greedy(request)
    prompt = backend.chat(request["messages"])
    wanted = request.get("max_completion_tokens") or request.get("max_tokens") or 16
    tokens = backend.generate(prompt, wanted, request.get("ignore_eos", False))
    message = {"role": "assistant", "content": backend.decode(tokens)}
    choice = {"index": 0, "message": message, "finish_reason": "length"}
    return {"object": "chat.completion", "choices": [choice], "usage": _usage(prompt, tokens)}


def _greedy(request: dict[str, Any]) -> None:
    if request.get("temperature", 1) != 0:
        raise RequestError("temperature: only 0 here")
    if request.get("stream"):
        raise RequestError("stream: whole answers only")


def _of_prompt(backend: Backend, prompt: list[int], top: int) -> list[dict[str, Any] | None]:
    """Return of each position the `top` likeliest tokens and the one that is there."""
    found: list[dict[str, Any] | None] = [None]
    for index in range(1, len(prompt)):
        by_rank = backend.logprobs(prompt[:index], max(top, _SOME))
        if prompt[index] not in dict(by_rank):
            by_rank = backend.logprobs(prompt[:index], _ALL)
        shown = by_rank[:top] + [pair for pair in by_rank if pair[0] == prompt[index]]
        found.append({str(token): {"logprob": logprob} for token, logprob in shown})
    return found


def _step_by_step(
    backend: Backend, prompt: list[int], num_tokens: int, top: int
) -> tuple[list[int], dict[str, Any]]:
    """Return greedy tokens, and of each position the `top` likeliest."""
    tokens: list[int] = []
    shown: list[dict[str, float]] = []
    for _ in range(num_tokens):
        by_rank = backend.logprobs(prompt + tokens, max(1, top))
        tokens.append(by_rank[0][0])
        shown.append({f"token_id:{token}": logprob for token, logprob in by_rank[: max(1, top)]})
    own = [next(iter(of.values())) for of in shown]
    names = [f"token_id:{token}" for token in tokens]
    return tokens, {"tokens": names, "token_logprobs": own, "top_logprobs": shown}


def _usage(prompt: list[int], tokens: list[int]) -> dict[str, int]:
    counts = {"prompt_tokens": len(prompt), "completion_tokens": len(tokens)}
    return {**counts, "total_tokens": len(prompt) + len(tokens)}
