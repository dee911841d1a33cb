"""How a variant is served from this machine: by `serve.py`, in a process of its own."""

import importlib.util
import os
import shutil
import sys
import tempfile
from pathlib import Path

from slipstream.evaluation.errors import EngineError, SlipstreamError
from slipstream.evaluation.manifest import parse_manifest, programs_of
from slipstream.evaluation.trust import exposure
from slipstream.kernels.variants import MANIFEST, Tree

from .running import RunningServer, free_port

_SERVE = Path(__file__).resolve().parent / "serve.py"
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")
_NO_SANDBOX = "a server needs the network, which the sandbox shuts out"


def serve_command(
    tree: Tree, where: Path, model: Path, options: dict[str, str], *, unsafe_local: bool = False
) -> list[str]:
    """Return the command that serves a variant.

    Args:
        where: the folder of the variant's files.
        model: the checkpoint's folder.
        options: of `serve.py`, by name.
        unsafe_local: run changed source too; it isn't confined.

    Raises:
        SlipstreamError: changed source, or no web server installed.
    """
    if tree.serves:
        _check_exposure(tree, unsafe_local=unsafe_local)
        return _own_command(tree, where, model, options)
    for package in ("fastapi", "uvicorn"):
        if importlib.util.find_spec(package) is None:
            raise SlipstreamError(
                f"serve: {package} is not installed; pip install 'slipstream-llm[serve]'"
            )
    if not any((model / name).is_file() for name in _TOKENIZERS):
        raise SlipstreamError(f"serve: {model} has no tokenizer, so it can't read or write text")
    _check_exposure(tree, unsafe_local=unsafe_local)
    command = [sys.executable, str(_SERVE), "--tree", str(where), "--model", str(model)]
    return command + [text for name, value in options.items() for text in (f"--{name}", value)]


def _check_exposure(tree: Tree, *, unsafe_local: bool) -> None:
    if not unsafe_local and (reason := exposure(tree.engine_id, _NO_SANDBOX)):
        raise SlipstreamError(f"variant {tree.id}: {reason}")


def _own_command(tree: Tree, where: Path, model: Path, options: dict[str, str]) -> list[str]:
    """Return the command of a variant that is a server itself, in a copy of its folder.

    It may write there, and a stored tree is never changed.
    """
    manifest = parse_manifest(tree.files[MANIFEST], f"variant {tree.id}")
    try:
        programs = programs_of(tree) or Path(sys.executable).parent
    except EngineError as error:
        raise SlipstreamError(f"variant {tree.id}: {error}") from error
    folder = shutil.copytree(where, Path(tempfile.mkdtemp(prefix="slipstream-serve-")) / tree.id)
    given = {
        "PATH": f"{programs}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        **manifest.env,
        "MODEL_ID": str(model),
        "SERVED_MODEL_NAME": options["name"],
        "HOST": options["host"],
        "PORT": options["port"],
        "MAX_CONTEXT": options["max-context"],
    }
    assignments = [f"{name}={value}" for name, value in given.items()]
    return ["/usr/bin/env", "-C", str(folder), *assignments, *manifest.serve]


def run_tree(
    tree: Tree, where: Path, model: Path, log: Path, *, name: str, max_context: int
) -> RunningServer:
    """Return a server of the shipped engine on a CPU and a free port, to be used with `with`."""
    port = free_port()
    options = {"port": str(port), "name": name, "max-context": str(max_context)}
    command = serve_command(tree, where, model, options)
    return RunningServer(command, port, log, environ={**os.environ, **visible("cpu")})


def visible(device: str) -> dict[str, str]:
    """Return what of the environment hides GPUs from an engine that was measured without one."""
    return {} if device == "cuda" else {"CUDA_VISIBLE_DEVICES": ""}
