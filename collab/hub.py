"""The Hub's side of a job: its files in a bucket, the job, its log, its end.

A job gets no secret: the model is mounted for it, its errand is mounted read-only, and what it
writes is a folder of its own. `huggingface_hub` speaks the wire; here its errors become sentences.
"""

import io
import json
import os
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import requires
from pathlib import Path
from typing import Any

from slipstream.evaluation.challenge import Challenge
from slipstream.evaluation.errors import SlipstreamError

IMAGE = "pytorch/pytorch:2.11.0-cuda12.8-cudnn9-devel"  # torch and nvcc, for kernels built there
ERRAND, RESULTS, MODEL = "/errand", "/results", "/model"
_LABEL = "slipstream-job"
_ROOMS = ("evaluation", "kernels")
# What measuring needs of the project's dependencies; torch is the image's.
_NEEDED = (
    *("accelerate", "filelock", "gguf", "huggingface_hub", "msgpack", "ninja", "numpy", "pydantic"),
    *("safetensors", "scipy", "transformers", "triton"),
)
_STARTS = """set -eu
apt-get update -qq >/dev/null && apt-get install -y -qq bubblewrap g++ >/dev/null || \
echo "no bubblewrap: only the shipped engine's source will run"
pip install --quiet --disable-pip-version-check {packages}
mkdir /tmp/slipstream && cd /tmp/slipstream && python -m zipfile -e {errand}/slipstream.zip .
PYTHONPATH=/tmp/slipstream exec python -m slipstream.evaluation.rented {errand} {results}
"""


@dataclass(frozen=True)
class State:
    """Where a job stands.

    Attributes:
        stage: as the Hub says: SCHEDULING, RUNNING, COMPLETED, ERROR, CANCELED, DELETED.
        running_s: how long it ran, or has run.
    """

    stage: str
    message: str = ""
    running_s: float | None = None

    @property
    def ended(self) -> bool:
        """Whether nothing more will come."""
        return self.stage not in ("SCHEDULING", "RUNNING")


class Hub:
    """Jobs of one account.

    Args:
        namespace: user or organisation that pays; empty for whom the token belongs to.
        bucket: the name of the bucket, in that namespace, where errands lie.

    Raises:
        SlipstreamError: no token, or one that the Hub refuses.
    """

    def __init__(self, namespace: str = "", bucket: str = "slipstream-errands") -> None:
        from huggingface_hub import HfApi, get_token
        from huggingface_hub.utils.tqdm import disable_progress_bars

        disable_progress_bars()  # an errand is small, and the run has lines of its own
        if not get_token():
            raise SlipstreamError(
                "executor hf-jobs: no token for the Hub; set HF_TOKEN, or `hf auth login`"
            )
        self._api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
        with _sentences("who the token belongs to"):
            self.namespace = namespace or str(self._api.whoami()["name"])
        self._bucket = f"{self.namespace}/{bucket}"
        self._made = False

    @property
    def page(self) -> str:
        """Where people see the jobs."""
        return f"{self._api.endpoint}/settings/jobs"

    def usd_per_hour(self, flavor: str) -> float | None:
        """Return the Hub's price of a flavor, or None if it doesn't say."""
        with _sentences("prices of jobs"):
            for one in self._api.list_jobs_hardware():
                if one.name == flavor and one.unit_label == "minute":
                    return 60 * one.unit_cost_usd
        return None

    def upload(self, name: str, files: Mapping[str, bytes]) -> None:
        """Put an errand's files into the bucket, and a first file where its results will lie.

        An empty folder can't be mounted to be written to.
        """
        with _sentences(f"bucket {self._bucket}"):
            if not self._made:
                self._api.create_bucket(self._bucket, private=True, exist_ok=True)
                self._made = True
            added: list[Any] = [(data, f"{name}/errand/{path}") for path, data in files.items()]
            added.append((b"results of this errand\n", f"{name}/results/README"))
            self._api.batch_bucket_files(self._bucket, add=added)

    def submit(self, name: str, flavor: str, timeout_s: int, model: str) -> str:
        """Start the job of an errand; return what the Hub calls it."""
        from huggingface_hub import Volume

        with _sentences(f"job {name}"):
            info = self._api.run_job(
                image=IMAGE,
                command=["bash", "-c", start_script()],
                flavor=flavor,
                timeout=timeout_s,
                labels={_LABEL: name},
                volumes=[Volume(**volume) for volume in volumes(self._bucket, name, model)],
                namespace=self.namespace,
            )
        return info.id

    def find(self, name: str) -> str:
        """Return what the Hub calls the job of an errand; empty if there is none."""
        with _sentences(f"job {name}"):
            jobs = self._api.list_jobs(labels={_LABEL: name}, namespace=self.namespace)
            return next((job.id for job in jobs), "")

    def state(self, remote: str) -> State:
        """Return where a job stands."""
        with _sentences(f"job {remote}"):
            info = self._api.inspect_job(job_id=remote, namespace=self.namespace)
        durations = info.durations
        running_s = durations.running_secs if durations else None
        return State(str(getattr(info.status.stage, "value", info.status.stage)),
                     info.status.message or "", running_s)  # fmt: skip

    def log(self, remote: str) -> Iterator[str]:
        """Yield the lines that a job has printed so far."""
        with _sentences(f"log of job {remote}"):
            yield from self._api.fetch_job_logs(job_id=remote, namespace=self.namespace)

    def cancel(self, remote: str) -> None:
        """Stop a job; one that has ended stays as it is."""
        with _sentences(f"job {remote}"):
            self._api.cancel_job(job_id=remote, namespace=self.namespace)


def volumes(bucket: str, name: str, model: str) -> list[dict[str, Any]]:
    """Return what a job mounts: its errand, its results, and a model of the Hub's."""
    found: list[dict[str, Any]] = [
        {"type": "bucket", "source": bucket, "mountPath": ERRAND, "path": f"{name}/errand"},
        {"type": "bucket", "source": bucket, "mountPath": RESULTS, "path": f"{name}/results"},
    ]
    found[0]["readOnly"] = True
    kind, _, source = model.partition(":")
    if kind == "hf":
        mounted = {"type": "model", "source": source, "mountPath": MODEL, "readOnly": True}
        found.append(mounted)
    return found


def start_script() -> str:
    """Return what a job runs first: it gets bubblewrap, packages and slipstream ready."""
    wanted = [
        line.partition(";")[0].strip().replace(" ", "")
        for line in requires("slipstream-llm") or []
        if "extra ==" not in line and _name(line) in _NEEDED
    ]
    packages = " ".join(f"'{line}'" for line in sorted(wanted))
    return _STARTS.format(packages=packages, errand=ERRAND, results=RESULTS)


def errand_files(
    errand: Mapping[str, Any], trees: Mapping[str, Mapping[str, bytes]]
) -> dict[str, bytes]:
    """Return an errand's files: what to do, the trees, and the two rooms that do it."""
    files = {"errand.json": json.dumps(errand).encode(), "slipstream.zip": _package()}
    for variant, tree in trees.items():
        files |= {f"variants/{variant}/{path}": data for path, data in tree.items()}
    return files


def refuse_drafter(challenge: Challenge) -> None:
    """Refuse what jobs can't do yet, before one is paid for.

    Raises:
        SlipstreamError: a challenge that names a drafter, which no job would find.
    """
    if challenge.drafter:
        raise SlipstreamError(
            f"challenge {challenge.name}: jobs of the Hub don't carry drafter "
            f"{challenge.drafter!r} along; leave it out, or measure on a machine of yours"
        )


def there(challenge: Challenge) -> Challenge:
    """Return a challenge as a job sees it: a model of the Hub's lies where it is mounted."""
    if not challenge.model.startswith("hf:"):
        return challenge
    return challenge.model_copy(update={"model": f"path:{MODEL}"})


def _package() -> bytes:
    """Return the rooms that measure, as a zip that Python can import from once it is unpacked."""
    root = Path(__file__).resolve().parent.parent
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("slipstream/__init__.py", "")
        for room in _ROOMS:
            for path in sorted((root / room).rglob("*")):
                if path.is_file() and "__pycache__" not in path.parts:
                    file.write(path, f"slipstream/{path.relative_to(root)}")
    return packed.getvalue()


def _name(requirement: str) -> str:
    for index, letter in enumerate(requirement):
        if not (letter.isalnum() or letter in "-_."):
            return requirement[:index]
    return requirement


@contextmanager
def _sentences(what: str) -> Iterator[None]:
    """Turn the client's errors into one line that says what to do."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        advice = {
            401: "the token is not valid; set HF_TOKEN to one that is",
            402: "the account has no credit for jobs; add some on the Hub",
            403: "the token may not do that; it needs write access and the permission to run jobs",
            404: "not there",
            429: "too many requests; try again later",
        }.get(status, "try again later")
        said = str(error).strip().splitlines()[-1] if str(error).strip() else ""
        raise SlipstreamError(
            f"hf-jobs: {what}: the Hub answers {status}: {advice} ({said})"
        ) from error
    except Exception as error:  # connection errors come as those of httpx, xet or the system
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SlipstreamError(f"hf-jobs: {what}: the Hub can't be reached: {reason}") from error
