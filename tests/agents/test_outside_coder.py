"""Outside coders: real programs in a folder of their own, under a limit, judged by their tree."""

import sys
import time
from pathlib import Path

import pytest

from slipstream.agents.outside_coder import OutsideCoder
from slipstream.agents.roles import CoderError
from slipstream.agents.session import Purse, Session
from slipstream.evaluation import sandbox
from slipstream.evaluation.errors import SlipstreamError, StopRequested
from slipstream.kernels.levers import SEED_SETTINGS
from slipstream.kernels.variants import Tree, seed_tree
from slipstream.memory.cassette import NoCassette
from slipstream.memory.costs import Costs
from slipstream.memory.records import Hypothesis, Run, RunState
from slipstream.memory.store import Memory, open_memory

SEED = seed_tree(SEED_SETTINGS)
IDEA = Hypothesis(
    *("r1-001", "r1", 0, "ada", SEED.id, "edit", SEED_SETTINGS),
    mechanism="norms are read twice",
    predicted_gain=0.1,
    created_at=1.0,
    target="edit engine/norm.py",
)


class Bench:
    """Satisfies `Workbench`."""

    facts = "a small model"
    left_s = 100.0

    def run(self, tree: Tree) -> str:
        return ""

    def check(self, tree: Tree) -> str:
        return ""

    def test(self, tree: Tree, kernel: str) -> str:
        return ""


@pytest.fixture
def memory(home: Path) -> Memory:
    memory = open_memory()
    run = Run("r1", "c", {}, "m", "m", 1, RunState.RUNNING, 5, 5, 0.0, False, None, None, 1.0)
    memory.add_run(run)
    return memory


def coder(memory: Memory, program: str, tmp_path: Path, **options: object) -> OutsideCoder:
    script = tmp_path / "agent.py"
    script.write_text(program)
    costs = Costs(memory.database)
    session = Session("r1", 1, costs, Purse("r1", costs), NoCassette(), lambda: 100.0)
    return OutsideCoder(f"{sys.executable} {script}", session, **options)  # type: ignore[arg-type]


def test_its_tree_counts(memory: Memory, tmp_path: Path) -> None:
    program = """
import pathlib, sys
brief = sys.stdin.read()
assert brief == pathlib.Path("BRIEF.md").read_text()
assert "norms are read twice" in brief and "a small model" in brief
path = pathlib.Path("engine/norm.py")
path.write_text(path.read_text() + "# changed\\n")
pathlib.Path("engine/new.py").write_text("x = 1\\n")
pathlib.Path("notes.txt").write_text("not part of an engine")
"""
    tree = coder(memory, program, tmp_path).implement(IDEA, SEED, Bench())
    assert tree.files["engine/norm.py"].endswith(b"# changed\n")
    assert tree.files.keys() - SEED.files.keys() == {"engine/new.py"}
    (cost,) = Costs(memory.database).of_run("r1")
    assert (cost.role, cost.outcome, cost.experiment) == ("coder", "ok", "r1-001")
    assert cost.wall_s > 0


def test_it_sees_few_variables(
    memory: Memory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-ant-not-for-everybody")
    monkeypatch.setenv("FOR_THE_CODER", "this one is")
    program = """
import os, pathlib
pathlib.Path("engine/seen.py").write_text(repr(sorted(os.environ.items())))
"""
    made = coder(memory, program, tmp_path, environment=("FOR_THE_CODER",))
    seen = made.implement(IDEA, SEED, Bench()).files["engine/seen.py"].decode()
    assert "FOR_THE_CODER" in seen
    assert "ANTHROPIC" not in seen
    assert "not-for-everybody" not in seen


@pytest.mark.parametrize("how", ["namespace", "mark"])
def test_whatever_it_started_ends_with_its_time(
    memory: Memory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    if how == "mark":
        monkeypatch.setattr("slipstream.evaluation.sandbox.problem", lambda: "none here")
    elif sandbox.problem():
        pytest.skip(sandbox.problem())
    sign = f"600.{time.time_ns() % 10**9}"
    program = f"""
import subprocess, sys, time
clean = {{}} if {how!r} == "namespace" else None  # even without the mark in their environment
for _ in range(3):  # grandchildren in sessions of their own
    subprocess.Popen([sys.executable, "-c",
        "import subprocess, time; subprocess.Popen(['sleep', '{sign}'], start_new_session=True);"
        "time.sleep({sign})"], start_new_session=True, env=clean)
time.sleep({sign})
"""
    begun = time.monotonic()
    with pytest.raises(CoderError, match="not done after 3 s, and was stopped"):
        coder(memory, program, tmp_path, limit_s=3.0).implement(IDEA, SEED, Bench())
    assert time.monotonic() - begun < 30
    assert not _running(sign)


def _running(sign: str) -> list[str]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes()
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            if sign.encode() in line and state != "Z":
                found.append(entry.name)
    return found


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("pass", "changed nothing"),
        ("import sys; print('out of credit'); sys.exit(4)", "ended with code 4: out of credit"),
        ("import os; os.symlink('/etc/passwd', 'engine/x.py')", "it left a link"),
        ("import os; os.remove('levers.json')", "it left no levers.json"),
        (
            "import sys; print('bad key sk-0123456789abcdefgh'); sys.exit(1)",
            r"bad key \[redacted\]",
        ),
        ("open('levers.json', 'w').write('{')", "left no engine"),
    ],
)
def test_bad_ends_say_what_happened(
    memory: Memory, tmp_path: Path, program: str, said: str
) -> None:
    with pytest.raises(CoderError, match=said):
        coder(memory, program, tmp_path).implement(IDEA, SEED, Bench())


def test_a_repair_starts_from_its_own_tree(memory: Memory, tmp_path: Path) -> None:
    program = """
import pathlib, sys
path = pathlib.Path("engine/norm.py")
if "IndentationError" in sys.stdin.read():
    path.write_text(path.read_text().replace("  broken", "# mended"))
else:
    path.write_text(path.read_text() + "  broken\\n")
"""
    made = coder(memory, program, tmp_path)
    broken = made.implement(IDEA, SEED, Bench())
    mended = made.repair(IDEA, broken, "IndentationError: unexpected indent", Bench())
    assert mended is not None
    assert mended.files["engine/norm.py"].endswith(b"# mended\n")


def test_no_such_program(memory: Memory) -> None:
    costs = Costs(memory.database)
    session = Session("r1", 1, costs, Purse("r1", costs), NoCassette(), lambda: 100.0)
    with pytest.raises(SlipstreamError, match="no such program"):
        OutsideCoder("no-such-program -p", session)


def test_ctrl_c_stops_it(memory: Memory, tmp_path: Path) -> None:
    made = coder(memory, "import time; time.sleep(600)", tmp_path)

    def stop() -> None:
        raise StopRequested

    made._session.check_stop = stop
    with pytest.raises(StopRequested):
        made.implement(IDEA, SEED, Bench())
