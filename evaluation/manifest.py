"""A served engine's folder: `manifest.json`, as the Fast Gemma Challenge defined it."""

import hashlib
import subprocess
import sys
import venv
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Literal

from filelock import FileLock
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from slipstream.kernels.seeds import seed_server, server_names
from slipstream.kernels.variants import MANIFEST, Tree

from .errors import EngineFailedError, ExposedError, SlipstreamError
from .home import cache_dir, make_dir
from .models import keep_gguf

_COMPLETE = "complete"


class Manifest(BaseModel):
    """What it says.

    Attributes:
        dependencies: what pip installs.
        model_id: a Hub id, or a path inside the folder.
        serve: the command, run in the folder.
        reads: what else than safetensors it needs of the model; an extension of ours.
    """

    model_config = ConfigDict(extra="ignore", protected_namespaces=())

    name: str
    dependencies: list[str] = Field(default_factory=list)
    model_id: str
    served_model_name: str
    port: int = Field(8000, ge=1, le=65535)
    serve: list[str] = Field(min_length=1)
    env: dict[str, str] = Field(default_factory=dict)
    reads: Literal["safetensors", "gguf"] = "safetensors"


def read_manifest(folder: Path) -> Manifest:
    """Read a submission's manifest.

    Raises:
        SlipstreamError: there is none, or a field is missing or wrong.
    """
    try:
        text = (folder / MANIFEST).read_bytes()
    except OSError as error:
        raise SlipstreamError(f"submission {folder}: no {MANIFEST}: {error.strerror}") from error
    return parse_manifest(text, f"submission {folder}")


def parse_manifest(text: bytes, whose: str) -> Manifest:
    """Validate the text of a manifest.

    Raises:
        SlipstreamError: a field is missing or wrong.
    """
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "the file"
        raise SlipstreamError(f"{whose}: {MANIFEST}: {field}: {first['msg']}") from error


def make_environment(
    manifest: Manifest, say: Callable[[str], None], folder: Path | None = None
) -> Path:
    """Return the `bin` folder of an environment with the dependencies, made once.

    Args:
        folder: what paths among them are relative to; None: they may only be packages by name.

    Raises:
        SlipstreamError: pip can't install them.
    """
    local = [name for name in manifest.dependencies if _is_local(name)]
    if local and folder is None:
        raise SlipstreamError(
            f"engine {manifest.name}: dependency {local[0]!r}: name a package; what lies in the "
            "folder is there without being installed"
        )
    environment = _environment(manifest.dependencies, folder if local else None)
    with FileLock(environment.with_suffix(".lock")):
        if not (environment / _COMPLETE).exists():
            say(f"installing {len(manifest.dependencies)} dependencies into {environment}, once")
            try:
                venv.create(environment, with_pip=True, clear=True)
            except (subprocess.CalledProcessError, OSError) as error:
                raise SlipstreamError(
                    f"engine {manifest.name}: no environment in {environment}: {error}; "
                    "apt-get install python3-venv"
                ) from error
            pip = [str(environment / "bin" / "python"), "-m", "pip", "install", "--quiet"]
            if manifest.dependencies:
                done = subprocess.run(
                    [*pip, "--disable-pip-version-check", *manifest.dependencies],
                    capture_output=True, text=True, check=False, cwd=folder,
                )  # fmt: skip
                if done.returncode:
                    lines = done.stderr.strip().splitlines() or ["no message"]
                    raise SlipstreamError(f"submission {manifest.name}: pip: {lines[-1]}")
            (environment / _COMPLETE).touch()
    return environment / "bin"


def programs_of(tree: Tree, say: Callable[[str], None] = lambda _: None) -> Path | None:
    """Return the `bin` folder that a served engine's command runs in; None is this Python's.

    pip runs what packages bring, and outside of the sandbox: it installs what a person asked for,
    never what an agent wrote into a manifest.

    Raises:
        EngineFailedError: a wrong manifest.
        ExposedError: dependencies that neither ship nor are there.
        SlipstreamError: pip can't install them.
    """
    try:
        manifest = parse_manifest(tree.files[MANIFEST], "the server")
    except SlipstreamError as error:
        raise EngineFailedError(str(error)) from error
    wanted = manifest.dependencies
    if not wanted:
        return None
    there = (_environment(wanted) / _COMPLETE).exists()
    if not there and tuple(wanted) not in _shipped():
        raise ExposedError(
            f"its dependencies ({', '.join(wanted)}) are not installed here, and pip would run "
            "them outside of the sandbox; `slipstream run --seed-engine DIR` installs a seed's"
        )
    return make_environment(manifest, say)


def complete_model(tree: Tree, uri: str, folder: Path) -> None:
    """Put into a model's folder what a served engine reads besides safetensors.

    Raises:
        SlipstreamError: a wrong manifest, or it can't be fetched.
    """
    if parse_manifest(tree.files[MANIFEST], "the server").reads == "gguf":
        keep_gguf(uri, folder)


def _is_local(dependency: str) -> bool:
    return dependency.startswith((".", "/", "-")) or "file:" in dependency


def _environment(dependencies: Sequence[str], folder: Path | None = None) -> Path:
    where = [] if folder is None else [str(folder.resolve())]
    key = hashlib.sha256("\n".join([sys.version, *dependencies, *where]).encode()).hexdigest()
    return make_dir(cache_dir() / "environments") / key[:16]


@cache
def _shipped() -> frozenset[tuple[str, ...]]:
    """Return the dependencies of the served engines that ship."""
    manifests = (seed_server(name).files[MANIFEST] for name in server_names())
    return frozenset(tuple(parse_manifest(text, "shipped").dependencies) for text in manifests)
