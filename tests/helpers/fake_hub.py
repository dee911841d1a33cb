"""The Hub's jobs and buckets behind real HTTP, for the client of `huggingface_hub`.

Routes, fields and the log's server-sent events are the Hub's; a submitted job's own script really
runs, as a process with an empty environment, with folders where the bucket would be mounted.
Contents of files go to `/xet/HASH`, in the place of the Hub's storage service, which has a protocol
of its own (see `upload_session`).
"""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace, TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, urlparse
from urllib.request import Request, urlopen

TOKEN = "hf_thetokenofada"


class FakeHub:
    """One account, `ada`.

    Attributes:
        fail: path's beginning → status of the next answers to it.
        specs: the bodies of submitted jobs.
        delay_s: how long a job is scheduled.
    """

    def __init__(self, cache: Path) -> None:
        self.fail: dict[str, list[int]] = {}
        self.asked: Counter[str] = Counter()
        self.specs: list[dict[str, Any]] = []
        self.delay_s, self.break_scripts = 0.0, False
        self._cache, self._contents, self._files = cache, {}, {}  # type: ignore[var-annotated]
        self._jobs: dict[str, SimpleNamespace] = {}
        self._folder = tempfile.TemporaryDirectory()
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for job in self._jobs.values():
            self.cancel(job)
        self._server.shutdown()
        self._server.server_close()
        self._folder.cleanup()

    def submit(self, spec: dict[str, Any]) -> dict[str, Any]:
        self.specs.append(spec)
        name = f"job{len(self._jobs):024d}"
        folder = Path(self._folder.name) / name
        job = SimpleNamespace(id=name, spec=spec, begun=time.time(), process=None, cancelled=False)
        job.log, job.ended = folder / "log", None
        script = spec["command"][-1]
        for volume in spec["volumes"]:
            if volume["type"] == "bucket":
                target = folder / volume["mountPath"].strip("/")
                self._mount(volume["path"], target)
                script = re.sub(rf"(?<=[ ']){volume['mountPath']}\b", str(target), script)
        script = script.replace("/tmp/slipstream", str(folder / "python"))
        programs = folder / "bin"
        programs.mkdir()
        for program in ("apt-get", "pip"):  # everything is installed here
            (programs / program).write_text("#!/bin/sh\nexit 0\n")
            (programs / program).chmod(0o755)
        paths = f"{programs}:{Path(sys.executable).parent}:/usr/bin:/bin"
        given = {"PATH": paths, "HOME": str(folder), "SLIPSTREAM_HOME": str(self._cache)}
        if self.break_scripts:
            script = "echo 'CUDA driver version is insufficient'; exit 3"
        job.process = subprocess.Popen(
            ["bash", "-c", f"sleep {self.delay_s}; {script}"],
            env=given,
            stdout=job.log.open("w"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._jobs[name] = job
        return self.describe(job)

    def describe(self, job: SimpleNamespace) -> dict[str, Any]:
        code = job.process.poll()
        stage = "RUNNING" if code is None else "COMPLETED" if code == 0 else "ERROR"
        if time.time() < job.begun + self.delay_s:
            stage = "SCHEDULING"
        if job.cancelled:
            stage = "CANCELED"
        message = f"exit code {code}" if stage == "ERROR" else None
        running = int(time.time() - job.begun - self.delay_s)
        created = datetime.fromtimestamp(job.begun, UTC).isoformat().replace("+00:00", "Z")
        return {
            "id": job.id,
            "createdAt": created,
            "dockerImage": job.spec["dockerImage"],
            "command": job.spec["command"],
            "arguments": [],
            "environment": {},
            "flavor": job.spec["flavor"],
            "labels": job.spec.get("labels", {}),
            "status": {"stage": stage, "message": message},
            "durations": {"schedulingSecs": 0, "runningSecs": running, "totalSecs": running},
            "owner": {"id": "1", "name": "ada", "type": "user"},
        }

    def cancel(self, job: SimpleNamespace) -> None:
        if job.process.poll() is None:
            job.cancelled = True
            os.killpg(job.process.pid, signal.SIGKILL)
            job.process.wait()

    def running(self) -> list[str]:
        return [job.id for job in self._jobs.values() if job.process.poll() is None]

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        """Return status and JSON; text is a stream of events."""
        parsed = urlparse(path)
        self.asked[f"{method} {parsed.path}"] += 1
        for beginning, statuses in self.fail.items():
            if parsed.path.startswith(beginning) and statuses:
                return statuses.pop(0), {"error": "as the test wishes"}
        match method, parsed.path.strip("/").split("/"):
            case "GET", ["api", "whoami-v2"]:
                return 200, {"name": "ada", "type": "user"}
            case "GET", ["api", "jobs", "hardware"]:
                return 200, [_hardware("cpu-basic", 500), _hardware("a10g-small", 16_667)]
            case "POST", ["api", "buckets", space, name]:
                return 200, {"url": f"{self.url}/buckets/{space}/{name}"}
            case "POST", ["api", "buckets", space, name, "batch"]:
                for line in body.decode().splitlines():
                    entry = json.loads(line)
                    self._files[entry["path"]] = self._contents[entry["xetHash"]]
                return 200, {"failed": []}
            case "PUT", ["xet", digest]:
                self._contents[digest] = body
                return 200, {}
            case "POST", ["api", "jobs", "ada"]:
                return 200, self.submit(json.loads(body))
            case "GET", ["api", "jobs", "ada"]:
                (label,) = parse_qs(parsed.query)["label"]
                key, _, value = label.partition("=")
                found = [j for j in self._jobs.values() if j.spec["labels"].get(key) == value]
                return 200, [self.describe(job) for job in found]
            case "GET", ["api", "jobs", "ada", name]:
                return 200, self.describe(self._jobs[name])
            case "POST", ["api", "jobs", "ada", name, "cancel"]:
                self.cancel(self._jobs[name])
                return 200, {}
            case "GET", ["api", "jobs", "ada", name, "logs"]:
                return 200, self._events(self._jobs[name])
        return 404, {"error": "no such route"}

    def _events(self, job: SimpleNamespace) -> str:
        now = datetime.fromtimestamp(job.begun, UTC).isoformat().replace("+00:00", "Z")
        lines = ["===== Job started at 2026-06-01 =====", *job.log.read_text().split("\n")[:-1]]
        events = [json.dumps({"data": line, "timestamp": now}) for line in lines]
        return "".join(f"data: {event}\n\n" for event in events)

    def _mount(self, beginning: str, target: Path) -> None:
        found = {p: data for p, data in self._files.items() if p.startswith(f"{beginning}/")}
        assert found, f"nothing to mount at {beginning}"
        for path, data in found.items():
            file = target / path.removeprefix(f"{beginning}/")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)


def upload_session(url: str) -> Any:
    """Return what stands in for `hf_xet`'s session: contents go to the fake Hub by HTTP."""

    class Commit:
        def __enter__(self) -> Self:
            return self

        def __exit__(self, *exc: object) -> None:
            return None

        def start_upload_bytes(self, data: bytes, **_: object) -> Any:
            digest = hashlib.sha256(data).hexdigest()
            with urlopen(Request(f"{url}/xet/{digest}", data=data, method="PUT")) as answer:
                answer.read()
            info = SimpleNamespace(hash=digest, file_size=len(data))
            return SimpleNamespace(result=lambda: SimpleNamespace(xet_info=info))

    return SimpleNamespace(new_upload_commit=lambda **_: Commit())


def _hardware(name: str, micro_usd: int) -> dict[str, Any]:
    return {
        "name": name,
        "prettyName": name,
        "cpu": "4 vCPU",
        "ram": "15 GB",
        "unitCostMicroUSD": micro_usd,
        "unitCostUSD": micro_usd / 1e6,
        "unitLabel": "minute",
    }


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing."""

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        allowed = (
            self.path.startswith("/xet/") or self.headers["Authorization"] == f"Bearer {TOKEN}"
        )
        status, found = (
            self.hub.answer(self.command, self.path, body)
            if allowed
            else (401, {"error": "Invalid username or password."})
        )
        text = found if isinstance(found, str) else json.dumps(found)
        kind = "text/event-stream" if isinstance(found, str) else "application/json"
        data = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
