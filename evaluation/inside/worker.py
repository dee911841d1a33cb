"""The child's side of the protocol: a script that loads one engine and answers for it.

Runs in the untrusted process, so nothing here is a safeguard: the parent checks every answer.
Started as a file in isolated mode, it imports from slipstream nothing but the files beside it; what
it imports of the variant is the package `engine` in the variant's tree. A tree that is a server is
started, and asked over HTTP.
"""

import importlib.util
import os
import socket
import struct
import sys
from pathlib import Path
from typing import Any, Protocol

import msgpack


class _Loaded(Protocol):
    vocab_size: int

    def generate(self, prompt: list[int], num_tokens: int) -> list[int]: ...
    def begin(self, prompt: list[int]) -> Any: ...
    def reveal(self, token: int) -> Any: ...
    def extend(self, tokens: list[int]) -> Any: ...
    def profile(self, prompt: list[int], num_tokens: int) -> dict[str, float]: ...


def _read_exactly(sock: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        chunk = sock.recv(count - len(data))
        if not chunk:
            os._exit(0)  # the parent is gone: nothing is left to do
        data += chunk
    return bytes(data)


def _answer(engine: _Loaded, request: dict[str, Any]) -> dict[str, Any]:
    match request["do"]:
        case "generate":
            return {"tokens": engine.generate(request["prompt"], request["num_tokens"])}
        case "begin":
            return {"logits": engine.begin(request["prompt"]).numpy().tobytes()}
        case "reveal":
            return {"logits": engine.reveal(request["token"]).numpy().tobytes()}
        case "profile":
            return {"profile": engine.profile(request["prompt"], request["num_tokens"])}
        case "acceptance":
            # An engine from before drafters were counted has none.
            return {"acceptance": list(getattr(engine, "acceptance", list)())}
        case "test":
            return {"rows": _beside("kernel_tests").run(request["kernels"])}
        case "extend":
            return {"logits": engine.extend(request["tokens"]).numpy().tobytes()}
    raise ValueError(f"unknown request {request['do']!r}")


def _beside(name: str) -> Any:
    """Return the module that lies beside this file."""
    path = Path(__file__).with_name(f"{name}.py")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _load(request: dict[str, Any]) -> _Loaded:
    tree, model, max_context = Path(request["tree"]), Path(request["model"]), request["max_context"]
    if (tree / "manifest.json").is_file():
        door = _beside("server_door")
        served: _Loaded = door.ServerEngine(tree, model, max_context, request["programs"])
        return served
    sys.path.insert(0, str(tree))
    import engine  # type: ignore[import-not-found]  # the variant's own package

    loaded: _Loaded = engine.load(tree, model, max_context)
    return loaded


def main() -> None:
    """Answer requests on the socket whose descriptor is the first argument, until it closes."""
    sock = socket.socket(fileno=int(sys.argv[1]))
    loaded: _Loaded | None = None
    while True:
        (length,) = struct.unpack(">I", _read_exactly(sock, 4))
        request = msgpack.unpackb(_read_exactly(sock, length))
        try:
            if loaded is None:
                loaded = _load(request)
                answer: dict[str, Any] = {"vocab_size": loaded.vocab_size}
            else:
                answer = _answer(loaded, request)
        except Exception as error:
            line = (str(error).strip().splitlines() or [""])[0]
            answer = {"error": f"{type(error).__name__}: {line}"[:500]}
        payload = msgpack.packb(answer)
        sock.sendall(struct.pack(">I", len(payload)) + payload)


if __name__ == "__main__":
    main()
