"""A variant as a folder that runs without slipstream: the submission that a challenge asks for.

`manifest.json` says what to install and how to start; beside it lie the server, the engine's tree,
the model if it has no name on the Hub, a README and the hashes of all of it (`sha256sum -c`).
"""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from slipstream.evaluation.challenge import Challenge
from slipstream.evaluation.errors import SlipstreamError
from slipstream.evaluation.models import fetch_config
from slipstream.kernels.variants import MANIFEST, Tree

from .launch import visible

_HERE = Path(__file__).resolve().parent
_NEEDS = (
    "torch",
    "transformers",
    "safetensors",
    "ninja",
    "fastapi",
    "uvicorn",
    "httptools",
    "uvloop",
)
_GPU_NEEDS = ("triton",)
_MEDIA_NEEDS = ("numpy", "pillow", "scipy", "soundfile")  # for a model that sees and hears
_PORT = 8000
SUMS = "SHA256SUMS"


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        files: how many, the hashes' own file left out.
        nbytes: of all of them.
    """

    variant: str
    folder: Path
    files: int
    nbytes: int


def export(
    tree: Tree,
    rules: Challenge,
    model: Path | None,
    into: Path,
    story: str,
    say: Callable[[str], None],
) -> Exported:
    """Write a variant's submission.

    Args:
        model: the checkpoint's folder, which is copied; None: the challenge names a Hub id.
        into: a folder that isn't there yet, or is empty.
        story: Markdown on how fast it is and where it comes from.

    Raises:
        SlipstreamError: the folder isn't empty, can't be written, or something isn't installed.
    """
    if into.exists() and (not into.is_dir() or any(into.iterdir())):
        raise SlipstreamError(f"export: {into} is there already and not empty; name another folder")
    manifest = make_manifest(tree, rules)
    try:
        into.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".export-", dir=into.parent) as scratch:
            folder = Path(scratch) / "it"
            _write(folder, tree, manifest, story)
            if model is not None:
                say(f"copying the model from {model}")
                unread = () if manifest.get("reads") == "gguf" else ("*.gguf",)
                shutil.copytree(model, folder / "model", ignore=shutil.ignore_patterns(*unread))
                (folder / "model").chmod(0o755)  # a cache's folder is its owner's alone
            files = sorted(path for path in folder.rglob("*") if path.is_file())
            say(f"hashing {len(files)} files")
            sums = [f"{_sha256(path)}  {path.relative_to(folder).as_posix()}" for path in files]
            (folder / SUMS).write_text("\n".join(sums) + "\n")
            nbytes = sum(path.stat().st_size for path in files)
            folder.rename(into)  # whole or not at all
    except OSError as error:
        raise SlipstreamError(f"export: can't write {into}: {error.strerror or error}") from error
    return Exported(tree.id, into, len(files), nbytes)


def make_manifest(tree: Tree, rules: Challenge) -> dict[str, Any]:
    """Return `manifest.json`: the versions are those that the variant was measured with here."""
    kind, _, name = rules.model.partition(":")
    drafted = tree.settings.get("draft", "off").partition("-")[0] in ("model", "assistant")
    # What guesses for a model lies beside its files, so these go along.
    model_id = name if kind == "hf" and not drafted else "model"
    if tree.serves:
        own = json.loads(tree.files[MANIFEST])
        env = {**visible(rules.device), **own.get("env", {})}
        return {**own, "model_id": model_id, "served_model_name": rules.name, "env": env}
    needs = [*_NEEDS, *(_GPU_NEEDS if rules.device == "cuda" else ())]
    config = json.loads((fetch_config(rules.model) / "config.json").read_text())
    if str(config["model_type"]).startswith("gemma4"):
        needs += _MEDIA_NEEDS
    try:
        dependencies = [f"{package}=={_version(package)}" for package in needs]
    except metadata.PackageNotFoundError as error:
        raise SlipstreamError(
            f"export: {error.name} is not installed; pip install 'slipstream-llm[serve]'"
        ) from error
    serve = ["python", "serve.py", "--tree", ".", "--max-context", "4096"]
    return {
        "name": f"slipstream-{tree.id}",
        "dependencies": dependencies,
        "model_id": model_id,
        "served_model_name": rules.name,
        "port": _PORT,
        "serve": serve,
        "env": visible(rules.device),
    }


def _write(folder: Path, tree: Tree, manifest: dict[str, Any], story: str) -> None:
    for name, content in tree.files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
        if content.startswith(b"#!"):
            (folder / name).chmod(0o755)
    if not tree.serves:
        shutil.copy(_HERE / "serve.py", folder)
        shutil.copytree(
            _HERE / "server", folder / "server", ignore=shutil.ignore_patterns("__pycache__")
        )
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
    (folder / "README.md").write_text(story)


def _version(package: str) -> str:
    return metadata.version(package).partition("+")[
        0
    ]  # builds for one machine have no meaning elsewhere


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
