"""Full disks, closed files, servers that go away: a clear error or a retry, and nothing lost."""

import os
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from memories import Teller
from postgres import Server
from sqlalchemy import text

from slipstream.evaluation.acceptance import Verdict
from slipstream.evaluation.errors import SlipstreamError
from slipstream.evaluation.pairs import Pair, Stage
from slipstream.memory.records import Experiment
from slipstream.memory.store import Memory, open_memory


def pair(index: int) -> Pair:
    return Pair(Stage.TEST, index, ("p", "q"), "ABBA", 10.0, 9.0)


def begin(memory: Memory) -> None:
    Teller(memory)
    memory.add_experiment(Experiment("r1-x", "r1", None, "seed", "b", 1.0))


def indices(memory: Memory) -> list[int]:
    return [found.index for found in memory.evidence("r1-x").pairs]


def test_full_disk_is_one_line_and_loses_nothing(tmp_path: Path) -> None:
    """SQLite itself runs out of pages: the same error as a full disk, without filling one."""
    url = f"sqlite:///{tmp_path}/m.db"
    with open_memory(url) as memory:
        begin(memory)
        memory.add_pair("r1-x", pair(0))
        with memory.database.engine.connect() as connection:
            pages = connection.exec_driver_sql("PRAGMA page_count").scalar() or 0
            connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
            big = Pair(Stage.TEST, 1, ("p" * 20_000, "q"), "ABBA", 10.0, 9.0)
        written: list[int] = []

        def fill() -> None:
            for index in range(1, 50):
                memory.add_pair("r1-x", Pair(**{**vars(big), "index": index}))
                written.append(index)

        with pytest.raises(SlipstreamError) as caught:
            fill()
        assert str(caught.value).endswith("database or disk is full; free some space")
        assert "\n" not in str(caught.value)
    with open_memory(url) as memory:
        assert indices(memory) == [0, *written]
        memory.add_pair("r1-x", pair(99))  # there is space again


def test_file_size_limit_is_an_error_and_loses_nothing(tmp_path: Path) -> None:
    """The kernel refuses to let the file grow, as a quota does."""
    url = f"sqlite:///{tmp_path}/m.db"
    with open_memory(url) as memory:
        begin(memory)
    code = f"""
import resource, signal, sys
sys.path.insert(0, {str(Path(__file__).parents[1] / "helpers")!r})
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_adversity import *
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))
memory = open_memory({url!r})
try:
    for index in range(10_000):
        memory.add_pair("r1-x", pair(index))
        print(index, flush=True)
except SlipstreamError as error:
    print("error:", error, flush=True)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    *acknowledged, last = done.stdout.strip().splitlines()
    assert last.startswith("error: memory sqlite:///"), done.stdout[-500:] + done.stderr[-500:]
    with open_memory(url) as memory:
        found = indices(memory)
    assert found[: len(acknowledged)] == list(range(len(acknowledged)))
    assert len(acknowledged) > 10


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody who may not write")
def test_read_only_file_says_so(tmp_path: Path) -> None:
    path = tmp_path / "m.db"
    with open_memory(f"sqlite:///{path}") as memory:
        begin(memory)
    code = f"""
import os, sys
sys.path.insert(0, {str(Path(__file__).parents[1] / "helpers")!r})
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_adversity import *
memory = open_memory("sqlite:///{path}")
assert indices(memory) == []
os.seteuid(65534)
memory.database.close()
try:
    memory.add_pair("r1-x", pair(0))
except SlipstreamError as error:
    print(error)
"""
    for folder in [path.parent, *path.parent.parents]:
        if str(folder).startswith("/tmp/"):
            folder.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert "readonly" in done.stdout, done.stdout + done.stderr
    assert "make it writable" in done.stdout


def test_busy_file_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "m.db"
    with open_memory(f"sqlite:///{path}") as memory:
        begin(memory)
        other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        other.execute("BEGIN IMMEDIATE")
        threading.Timer(0.6, lambda: other.execute("COMMIT")).start()
        begun = time.monotonic()
        memory.add_pair("r1-x", pair(0))
        assert time.monotonic() - begun > 0.4
        assert indices(memory) == [0]
        other.close()


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory, postgres: Server) -> Iterator[Server]:
    """A server of one's own, to be restarted at will."""
    made = Server(tmp_path_factory.mktemp("restarted"))
    yield made
    with suppress(subprocess.CalledProcessError):
        made.stop("immediate")


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_postgres_that_restarts_is_waited_for(server: Server, mode: str) -> None:
    with open_memory(server.new_database()) as memory:
        begin(memory)
        done = threading.Event()

        def restart() -> None:
            time.sleep(0.3)
            server.restart(mode, away_s=0.5)
            done.set()

        thread = threading.Thread(target=restart)
        thread.start()
        count = 0
        while not done.is_set() or count < 50:
            memory.add_pair("r1-x", pair(count))
            count += 1
        thread.join()
        assert indices(memory) == list(range(count))


def test_postgres_that_stays_away_is_an_error(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("slipstream.memory.database._PAUSES_S", (0.05, 0.1))
    with open_memory(server.new_database()) as memory:
        begin(memory)
        server.stop("immediate")
        with pytest.raises(SlipstreamError, match=r"^memory postgresql.*\S; .*") as caught:
            memory.add_pair("r1-x", pair(0))
        assert "\n" not in str(caught.value)


def test_mistyped_server_is_an_error_at_once() -> None:
    begun = time.monotonic()
    with pytest.raises(SlipstreamError, match="is the server running") as caught:
        open_memory("postgresql+psycopg://me:secret@127.0.0.1:1/x")
    assert time.monotonic() - begun < 5
    assert "secret" not in str(caught.value)


class Cutter:
    """A proxy before Postgres that cuts the connection when a COMMIT passes by."""

    def __init__(self, target: Path) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.cuts: list[str] = []  # "before" or "after" the server gets to see it
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            with suppress(OSError):
                ours, _ = self._listener.accept()
                theirs = socket.socket(socket.AF_UNIX)
                theirs.connect(str(self._target))
                threading.Thread(target=self._pump, args=(ours, theirs), daemon=True).start()
                threading.Thread(target=self._back, args=(theirs, ours), daemon=True).start()
                continue
            return

    def _pump(self, ours: socket.socket, theirs: socket.socket) -> None:
        with suppress(OSError):
            while data := ours.recv(1 << 16):
                if b"COMMIT" in data and self.cuts:
                    if self.cuts.pop() == "after":
                        theirs.sendall(data)
                        time.sleep(0.1)  # committed, but nobody hears of it
                    for end in (ours, theirs):
                        end.shutdown(socket.SHUT_RDWR)
                        end.close()
                    return
                theirs.sendall(data)

    def _back(self, theirs: socket.socket, ours: socket.socket) -> None:
        with suppress(OSError):
            while data := theirs.recv(1 << 16):
                ours.sendall(data)
        with suppress(OSError):
            ours.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listener.close()


@pytest.mark.parametrize("when", ["before", "after"])
def test_connection_cut_in_mid_commit_neither_loses_nor_doubles(
    postgres: Server, when: str
) -> None:
    url = postgres.new_database()
    name = url.partition("@/")[2].partition("?")[0]
    cutter = Cutter(postgres.folder / ".s.PGSQL.5432")
    through = f"postgresql+psycopg://slip@127.0.0.1:{cutter.port}/{name}?sslmode=disable"
    with open_memory(through) as memory:
        begin(memory)
        teller = Teller(memory)
        for number in range(4):
            cutter.cuts = [when]
            memory.add_pair("r1-x", pair(number))
            assert cutter.cuts == []
        told = teller.tell("a", Verdict.REJECTED, 0.1)
        cutter.cuts = [when]
        again = teller.tell("b", Verdict.KEPT, 0.2)
        assert indices(memory) == [0, 1, 2, 3]
        counts = "SELECT kept, no_gain FROM ledger"
        rows = memory.database.read(lambda c: c.execute(text(counts)).all())
        assert [tuple(row) for row in rows] == [(1, 1)]
        for experiment in (told, again):
            found = memory.experiment(experiment)
            assert found is not None
            assert found.verdict is not None
    cutter.close()
