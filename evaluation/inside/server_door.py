"""An engine behind HTTP, as `worker.py` knows engines: starts the server and asks it.

Runs beside the server, in its sandbox, whose network has nothing but itself. Nothing here is a
safeguard: the parent keeps the clock, checks every answer, and has the reference rescore it.
"""

import http.client
import json
import os
import socket
import subprocess
import time
from array import array
from pathlib import Path
from typing import Any

_POLL_S = 0.1
_ANSWER_S = 3600.0  # the parent has its own, shorter limit


class ServerEngine:
    """A server behind the challenge's contract.

    Args:
        tree: its folder, with `manifest.json`.
        model: the checkpoint's folder.
        programs: the folder whose `python` the manifest's command means.
    """

    def __init__(self, tree: Path, model: Path, max_context: int, programs: str) -> None:
        manifest = json.loads((tree / "manifest.json").read_text())
        config = json.loads((model / "config.json").read_text())
        self.vocab_size: int = config.get("text_config", config)["vocab_size"]
        self._name = manifest["served_model_name"]
        self._prefix: list[int] = []
        port = _free_port()
        environ = {
            **os.environ,
            "PATH": f"{programs}:{os.environ['PATH']}",
            **manifest.get("env", {}),
            "MODEL_ID": str(model),
            "SERVED_MODEL_NAME": self._name,
            "HOST": "127.0.0.1",
            "PORT": str(port),
            "MAX_CONTEXT": str(max_context),
        }
        self._server = subprocess.Popen(manifest["serve"], cwd=tree, env=environ)
        self._http = http.client.HTTPConnection("127.0.0.1", port, timeout=_ANSWER_S)
        self._wait()

    def generate(self, prompt: list[int], num_tokens: int) -> list[int]:
        """Return the tokens that the server continues with."""
        choice = self._complete(prompt, max_tokens=num_tokens)
        tokens: list[int] = choice["token_ids"]
        return tokens

    def begin(self, prompt: list[int]) -> "_Logits":
        """Return the next token's log-probabilities."""
        self._prefix = list(prompt)
        return self._next()

    def reveal(self, token: int) -> "_Logits":
        """Add a token; return the log-probabilities after it."""
        self._prefix.append(token)
        return self._next()

    def profile(self, prompt: list[int], num_tokens: int) -> dict[str, float]:
        """Refuse: what time goes where, a server doesn't say."""
        raise NotImplementedError("a server doesn't tell where its time goes")

    def _next(self) -> "_Logits":
        fields = {"logprobs": self.vocab_size, "return_tokens_as_token_ids": True}
        found = self._complete(self._prefix, max_tokens=1, **fields)["logprobs"]["top_logprobs"][0]
        if len(found) != self.vocab_size:
            raise ValueError(
                f"the server tells {len(found)} of {self.vocab_size} log-probabilities: all are "
                "needed to judge quality (vLLM: --max-logprobs -1)"
            )
        values = array("f", bytes(4 * self.vocab_size))
        for name, logprob in found.items():
            values[int(name.removeprefix("token_id:"))] = logprob
        return _Logits(values)

    def _complete(self, prompt: list[int], **fields: Any) -> Any:
        answer = self._ask(
            "POST",
            "/v1/completions",
            {
                "model": self._name,
                "prompt": prompt,
                "temperature": 0,
                "ignore_eos": True,
                "add_special_tokens": False,
                "return_token_ids": True,
                **fields,
            },
        )
        return answer["choices"][0]

    def _ask(self, method: str, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body)
        try:
            self._http.request(method, path, data, {"content-type": "application/json"})
            answer = self._http.getresponse()
            text = answer.read()
        finally:  # stopped between requests, a server would find the connection too old
            self._http.close()
        if answer.status != http.client.OK:
            raise ValueError(f"the server: {answer.status} at {path}: {text[:300]!r}")
        return json.loads(text)

    def _wait(self) -> None:
        """Wait until the server says that it is ready; the parent says for how long."""
        while True:
            if (code := self._server.poll()) is not None:
                raise ChildProcessError(
                    f"the server ended with {code} before it was ready; see its log"
                )
            try:
                self._ask("GET", "/v1/models")
            except (OSError, http.client.HTTPException, ValueError):
                time.sleep(_POLL_S)
            else:
                return


class _Logits:
    """Numbers as the worker asks for them."""

    def __init__(self, values: "array[float]") -> None:
        self._values = values

    def numpy(self) -> "array[float]":
        return self._values


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port
