"""Real child processes: what an honest engine answers, and what becomes of the others."""

import os
import time
from pathlib import Path

import numpy as np
import pytest
from tiny_engines import write_engine

from slipstream.evaluation.child import ChildEngine
from slipstream.evaluation.errors import EngineFailedError, InvalidOutputError


def start(tree: Path) -> ChildEngine:
    return ChildEngine(tree, tree, max_context=64)


def test_honest_engine_answers(tmp_path: Path) -> None:
    with start(write_engine(tmp_path / "t")) as engine:
        assert engine.vocab_size == 8
        generation = engine.generate([1, 2], 5)
        assert generation.tokens == (3, 4, 5, 6, 7)
        assert generation.tps == pytest.approx(5 / generation.duration_s)
        np.testing.assert_array_equal(engine.begin([1, 2]), np.eye(8, dtype=np.float32)[2])
        np.testing.assert_array_equal(engine.reveal(5), np.eye(8, dtype=np.float32)[5])


GENERATE = "return [(sum(prompt) + i) % 8 for i in range(num_tokens)]"


@pytest.mark.parametrize(
    ("new", "message"),
    [
        ("return [0] * (num_tokens - 1)", "4 tokens instead of 5"),
        ("return [0] * (num_tokens + 1)", "6 tokens instead of 5"),
        ("return [8] * num_tokens", "token 8 is outside 0..7"),
        ("return [-1] * num_tokens", "token -1 is outside"),
        ("return [0.5] * num_tokens", "not a list of integers"),
        ("return [True] * num_tokens", "not a list of integers"),
        ("return 'abc'", "not a list of integers"),
        ("return None", "not a list of integers"),
        ("return [0] * (9 << 20)", "frame of .* bytes, limit"),
    ],
)
def test_wrong_tokens_are_invalid(new: str, message: str, tmp_path: Path) -> None:
    tree = write_engine(tmp_path / "t", (GENERATE, new))
    with start(tree) as engine, pytest.raises(InvalidOutputError, match=message):
        engine.generate([1], 5)


@pytest.mark.parametrize(
    ("new", "message"),
    [
        ("float('nan')", "NaN or infinity"),
        ("float('inf')", "NaN or infinity"),
        ("0.0, *[0.0", "not 1 × 8 float32 values"),
    ],
)
def test_wrong_logits_are_invalid(new: str, message: str, tmp_path: Path) -> None:
    if new.startswith("0.0"):
        change = ('struct.pack("<8f", *[', 'struct.pack("<9f", 0.0, *[')
    else:
        change = ("float(self.last == i)", new)
    tree = write_engine(tmp_path / "t", change)
    with start(tree) as engine, pytest.raises(InvalidOutputError, match=message):
        engine.begin([1])


@pytest.mark.parametrize(
    ("new", "message"),
    [
        ("raise ValueError('two\\nlines')", r"^ValueError: two$"),
        ("import os; os._exit(3)", r"ended \(exit 3\)"),
        ("import os; os.write(2, b'last words\\n'); os._exit(3)", "exit 3.: last words"),
    ],
)
def test_crashes_are_failures_with_their_reason(new: str, message: str, tmp_path: Path) -> None:
    tree = write_engine(tmp_path / "t", (GENERATE, new))
    with start(tree) as engine, pytest.raises(EngineFailedError, match=message):
        engine.generate([1], 5)


def test_failure_carries_the_log(tmp_path: Path) -> None:
    code = "import os; os.write(2, b'first\\nsecond\\n'); os._exit(3)"
    with start(write_engine(tmp_path / "t", (GENERATE, code))) as engine:
        with pytest.raises(EngineFailedError) as caught:
            engine.generate([1], 5)
        assert caught.value.log == "first\nsecond"


def test_engine_that_does_not_load_is_a_failure(tmp_path: Path) -> None:
    tree = write_engine(tmp_path / "t", ("return Engine()", "raise ValueError('no such lever')"))
    with pytest.raises(EngineFailedError, match="no such lever"):
        start(tree)


def test_late_answer_is_invalid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slipstream.evaluation.child._LOAD_TIMEOUT_S", 0.5)
    tree = write_engine(tmp_path / "t", ("return Engine()", "import time; time.sleep(60)"))
    begun = time.monotonic()
    with pytest.raises(InvalidOutputError, match=r"no answer within 0.5 s"):
        start(tree)
    assert time.monotonic() - begun < 10


def test_closing_kills_the_whole_group_and_removes_its_scratch(tmp_path: Path) -> None:
    code = (
        "import os, subprocess; p = subprocess.Popen(['sleep', '60']);"
        f"open({str(tmp_path / 'pids')!r}, 'w').write(f'{{p.pid}} {{os.getcwd()}}'); return [0]"
    )
    engine = start(write_engine(tmp_path / "t", (GENERATE, code)))
    engine.generate([1], 1)
    pid, scratch = (tmp_path / "pids").read_text().split()
    assert Path(scratch).is_dir()
    engine.close()
    deadline = time.monotonic() + 5
    while _alive(int(pid)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not _alive(int(pid))
    assert not Path(scratch).exists()


def test_child_gets_no_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    code = "import os; raise ValueError(','.join(sorted(os.environ)))"
    engine = start(write_engine(tmp_path / "t", (GENERATE, code)))
    with engine, pytest.raises(EngineFailedError) as caught:
        engine.generate([1], 1)
    assert "HOME" in str(caught.value)
    assert "OPENAI" not in str(caught.value)


def test_child_is_out_of_reach_of_the_terminals_ctrl_c(tmp_path: Path) -> None:
    with start(write_engine(tmp_path / "t")) as engine:
        assert os.getpgid(engine._process.pid) != os.getpgid(0)
        assert os.getsid(engine._process.pid) != os.getsid(0)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
