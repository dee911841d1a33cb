"""A submission: a folder with `manifest.json` and what that starts."""

import hashlib
import os
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from slipstream.evaluation.errors import SlipstreamError
from slipstream.evaluation.home import cache_dir, make_dir

from .running import RunningServer, free_port

MANIFEST = "manifest.json"
# What a server may see of this environment; never a key.
_PASSED = ("HOME", "LANG", "CUDA_VISIBLE_DEVICES", "HF_HOME", "XDG_CACHE_HOME", "LD_LIBRARY_PATH")


class Manifest(BaseModel):
    """`manifest.json`, as the Fast Gemma Challenge defined it.

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
    path = folder / MANIFEST
    try:
        return Manifest.model_validate_json(path.read_text())
    except OSError as error:
        raise SlipstreamError(f"submission {folder}: no {MANIFEST}: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "the file"
        raise SlipstreamError(
            f"submission {folder}: {MANIFEST}: {field}: {first['msg']}"
        ) from error


def make_environment(manifest: Manifest, say: Callable[[str], None]) -> Path:
    """Return the `bin` folder of an environment with the dependencies, made once.

    Raises:
        SlipstreamError: pip can't install them.
    """
    key = hashlib.sha256("\n".join([sys.version, *manifest.dependencies]).encode()).hexdigest()
    folder = make_dir(cache_dir() / "environments") / key[:16]
    with FileLock(folder.with_suffix(".lock")):
        if not (folder / "complete").exists():
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
            (folder / "complete").touch()
    return folder / "bin"


def start(folder: Path, manifest: Manifest, programs: Path, log: Path) -> RunningServer:
    """Return the submission's server on a free port, to be used with `with`.

    Args:
        programs: the folder whose `python` is meant.
        log: where its output goes.
    """
    port = free_port()
    environ = {name: os.environ[name] for name in _PASSED if name in os.environ}
    environ |= {
        "PATH": f"{programs}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "MODEL_ID": manifest.model_id,
        "SERVED_MODEL_NAME": manifest.served_model_name,
        "HOST": "127.0.0.1",
        "PORT": str(port),
        **manifest.env,
    }
    command = ["env", "-C", str(folder.resolve()), *manifest.serve]
    return RunningServer(command, port, log, environ=environ)
