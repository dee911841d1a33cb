"""A served engine's folder: `manifest.json`, as the Fast Gemma Challenge defined it."""

import hashlib
import subprocess
import sys
import venv
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

from filelock import FileLock
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from slipstream.kernels.seeds import seed_server, server_names
from slipstream.kernels.variants import MANIFEST, Tree

from .errors import EngineFailedError, SlipstreamError
from .home import cache_dir, make_dir

_COMPLETE = "complete"


class Manifest(BaseModel):
    """What it says.

    Attributes:
        dependencies: what pip installs.
        model_id: a Hub id, or a path inside the folder.
        serve: the command, run in the folder.
    """

    model_config = ConfigDict(extra="ignore", protected_namespaces=())

    name: str
    dependencies: list[str] = Field(default_factory=list)
    model_id: str
    served_model_name: str
    port: int = Field(8000, ge=1, le=65535)
    serve: list[str] = Field(min_length=1)
    env: dict[str, str] = Field(default_factory=dict)


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


def make_environment(manifest: Manifest, say: Callable[[str], None]) -> Path:
    """Return the `bin` folder of an environment with the dependencies, made once.

    Raises:
        SlipstreamError: pip can't install them.
    """
    folder = _environment(manifest.dependencies)
    with FileLock(folder.with_suffix(".lock")):
        if not (folder / _COMPLETE).exists():
            say(f"installing {len(manifest.dependencies)} dependencies into {folder}, once")
            venv.create(folder, with_pip=True, clear=True)
            pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet"]
            if manifest.dependencies:
                done = subprocess.run(
                    [*pip, "--disable-pip-version-check", *manifest.dependencies],
                    capture_output=True, text=True, check=False,
                )  # fmt: skip
                if done.returncode:
                    lines = done.stderr.strip().splitlines() or ["no message"]
                    raise SlipstreamError(f"submission {manifest.name}: pip: {lines[-1]}")
            (folder / _COMPLETE).touch()
    return folder / "bin"


def programs_of(tree: Tree, say: Callable[[str], None] = lambda _: None) -> Path | None:
    """Return the `bin` folder that a served engine's command runs in; None is this Python's.

    pip runs what packages bring, and outside of the sandbox: it installs what a person asked for,
    never what an agent wrote into a manifest.

    Raises:
        EngineFailedError: a wrong manifest, or dependencies that neither ship nor are there.
        SlipstreamError: pip can't install them.
    """
    try:
        manifest = parse_manifest(tree.files[MANIFEST], "the server")
    except SlipstreamError as error:
        raise EngineFailedError(str(error)) from error
    wanted = manifest.dependencies
    if not wanted:
        return None
    folder = _environment(wanted)
    if not (folder / _COMPLETE).exists() and tuple(wanted) not in _shipped():
        raise EngineFailedError(
            f"its dependencies ({', '.join(wanted)}) are not its seed's, and pip would run them "
            "outside of the sandbox"
        )
    return make_environment(manifest, say)


def _environment(dependencies: Sequence[str]) -> Path:
    key = hashlib.sha256("\n".join([sys.version, *dependencies]).encode()).hexdigest()
    return make_dir(cache_dir() / "environments") / key[:16]


@cache
def _shipped() -> frozenset[tuple[str, ...]]:
    """Return the dependencies of the served engines that ship."""
    manifests = (seed_server(name).files[MANIFEST] for name in server_names())
    return frozenset(tuple(parse_manifest(text, "shipped").dependencies) for text in manifests)
