"""What may be served, and what is said of a server that doesn't start."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from slipstream.evaluation.errors import SlipstreamError
from slipstream.kernels.levers import SEED_SETTINGS
from slipstream.kernels.variants import seed_tree
from slipstream.serving.launch import serve_command
from slipstream.serving.running import RunningServer, free_port

SEED = seed_tree(SEED_SETTINGS)
CHANGED = replace(SEED, files={**SEED.files, "engine/more.py": b"x = 1\n"})


def test_changed_source_is_served_only_on_request(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "tokenizer.json").touch()
    with pytest.raises(SlipstreamError, match=r"changed by an agent, .* shuts out; --unsafe-local"):
        serve_command(CHANGED, tmp_path, model, {})
    command = serve_command(CHANGED, tmp_path, model, {"port": "8001"}, unsafe_local=True)
    assert command[-2:] == ["--port", "8001"]
    assert serve_command(SEED, tmp_path, model, {})[0] == sys.executable


def test_a_model_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SlipstreamError, match="has no tokenizer"):
        serve_command(SEED, tmp_path, tmp_path, {})


def test_a_server_that_ends_at_once_has_its_last_words(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "print('no such model'); raise SystemExit(3)"]
    with (
        pytest.raises(SlipstreamError, match="the server ended with 3:\nno such model"),
        RunningServer(command, free_port(), tmp_path / "log"),
    ):
        pass


def test_a_server_that_is_never_ready_is_ended(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import time; print('loading', flush=True); time.sleep(60)"]
    server = RunningServer(command, free_port(), tmp_path / "log", start_s=1.0)
    with pytest.raises(SlipstreamError, match="wasn't ready after 1 s:\nloading"), server:
        pass
    assert server.process.returncode is not None
