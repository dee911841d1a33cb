"""The command: load an engine's tree and serve it.

MODEL_ID, SERVED_MODEL_NAME, HOST and PORT stand in for the options that aren't given, which is how
a benchmark's harness calls a server.
"""

import argparse
import json
import os
import re
import socket
import sys
from pathlib import Path
from typing import Any

import torch
import uvicorn

from .app import Served, make_app
from .senses import open_senses

_PATIENCE_S = 5  # with whoever is still waiting for an answer when the server is told to stop
_NEEDED = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]


def main(arguments: list[str] | None = None) -> None:
    """Serve until it is told to stop."""
    parser = argparse.ArgumentParser(description="An OpenAI-compatible server around one engine.")
    environ = os.environ
    parser.add_argument("--tree", type=Path, required=True, help="folder with engine/, levers.json")
    parser.add_argument("--model", default=environ.get("MODEL_ID"), help="folder, or ORG/NAME")
    parser.add_argument("--name", default=environ.get("SERVED_MODEL_NAME"))
    parser.add_argument("--host", default=environ.get("HOST", "127.0.0.1"))
    parser.add_argument("--port", type=int, default=int(environ.get("PORT", "8000")))
    parser.add_argument("--max-context", type=int, default=4096)
    options = parser.parse_args(arguments)
    if options.model is None:
        parser.error("no model: --model FOLDER, or MODEL_ID in the environment")
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    where = (options.host, options.port)
    try:  # taken before the model is loaded, which takes a while
        door = socket.create_server(where, family=family, backlog=2048)
    except OSError as error:
        why = os.strerror(error.errno) if error.errno else error
        sys.exit(f"error: {options.host} port {options.port}: {why}; --port names another one")
    with door:
        _serve(door, options)


def _serve(door: socket.socket, options: argparse.Namespace) -> None:
    try:
        model = find_model(options.model)
        served = load_served(options.tree, model, options.name or model.name, options.max_context)
    except (ValueError, OSError) as error:
        line = (str(error).strip().splitlines() or ["no message"])[0]
        sys.exit(f"error: {line}")
    print(f"{served.name} at http://{options.host}:{options.port}/v1", flush=True)
    config = uvicorn.Config(
        make_app(served), log_level="warning", timeout_graceful_shutdown=_PATIENCE_S
    )
    uvicorn.Server(config).run(sockets=[door])


def find_model(name: str) -> Path:
    """Return the folder of a model: one that is here, or one fetched from the Hub.

    Raises:
        ValueError: it is neither.
    """
    if (Path(name) / "config.json").is_file():
        return Path(name)
    if Path(name).exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise ValueError(f"model {name!r}: no folder with a config.json, and no ORG/NAME")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=_NEEDED))
    except Exception as error:  # connection errors come as httpx, requests or OS errors
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"model {name!r}: the Hub says {line}") from error


def load_served(tree: Path, model: Path, name: str, max_context: int) -> Served:
    """Load the package `engine` of a tree, and the model's tokenizer."""
    from transformers import AutoTokenizer

    sys.path.insert(0, str(tree))
    import engine  # type: ignore[import-not-found]  # the variant's own package

    config = json.loads((model / "config.json").read_text())
    sizes = config.get("text_config", config)
    max_context = min(max_context, sizes["max_position_embeddings"])
    tokenizer = AutoTokenizer.from_pretrained(model)
    loaded = engine.load(tree, model, max_context)
    senses = open_senses(model, tokenizer, "cuda" if torch.cuda.is_available() else "cpu")
    return Served(loaded, tokenizer, name, max_context, _ends(model, config, tokenizer), senses)


def _ends(model: Path, config: dict[str, Any], tokenizer: Any) -> frozenset[int]:
    """Return the tokens that end an answer: what is made for generating knows best."""
    generation = model / "generation_config.json"
    found = json.loads(generation.read_text()).get("eos_token_id") if generation.exists() else None
    found = config.get("eos_token_id") if found is None else found
    many = found if isinstance(found, list) else [found]
    own = getattr(tokenizer, "eos_token_id", None)
    return frozenset(token for token in (*many, own) if token is not None)
