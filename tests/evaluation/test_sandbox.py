"""The sandbox: what an engine sees, what it may use, what becomes of it."""

import platform
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_engines import write_engine

from slipstream.evaluation import sandbox
from slipstream.evaluation.child import ChildEngine
from slipstream.evaluation.errors import EngineFailedError, InvalidOutputError
from slipstream.evaluation.sandbox import AnySandbox, Limits, NoSandbox, Sandbox, environment
from slipstream.evaluation.syscalls import _ARCHITECTURES, seccomp_program

needs_bubblewrap = pytest.mark.skipif(bool(sandbox.problem()), reason=sandbox.problem())
BOXES = [NoSandbox(), pytest.param(Sandbox(), marks=needs_bubblewrap)]
GENERATE = "return [(sum(prompt) + i) % 8 for i in range(num_tokens)]"


def start(tmp_path: Path, code: str = GENERATE, **limits: int) -> ChildEngine:
    tree = write_engine(tmp_path / "t", (GENERATE, code))
    return ChildEngine(tree, tree, max_context=64, sandbox=Sandbox(), limits=Limits(**limits))


def told(engine: ChildEngine) -> str:
    """Return what an engine says in its error."""
    with engine, pytest.raises(EngineFailedError) as caught:
        engine.generate([1], 1)
    return str(caught.value)


@needs_bubblewrap
def test_engine_works_inside(tmp_path: Path) -> None:
    with start(tmp_path) as engine:
        assert engine.generate([1, 2], 5).tokens == (3, 4, 5, 6, 7)
        assert engine.begin([3]).argmax() == 3
        assert engine.reveal(5).argmax() == 5


@needs_bubblewrap
def test_sees_nothing_but_what_is_allowed(tmp_path: Path) -> None:
    (tmp_path / "memory.db").write_text("secret")
    seen = told(start(tmp_path, "import os; raise ValueError(sorted(os.listdir('/')))"))
    assert "home" not in seen
    assert "variant" in seen
    path = str(tmp_path / "memory.db")
    assert "False" in told(
        start(tmp_path / "b", f"import os; raise ValueError(os.path.exists({path!r}))")
    )
    code = "import slipstream; raise ValueError(slipstream.__file__)"
    assert "ModuleNotFoundError" in told(start(tmp_path / "c", code))


@needs_bubblewrap
def test_installed_slipstream_is_masked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where slipstream is installed as a wheel, its package lies among the visible ones."""
    packages = tmp_path / "site-packages"
    (packages / "slipstream" / "evaluation").mkdir(parents=True)
    (packages / "slipstream" / "evaluation" / "prompts.jsonl").write_text("{}")
    monkeypatch.setattr(sandbox.sysconfig, "get_path", lambda _: str(packages))
    listing = f"os.listdir({str(packages)!r}), os.listdir({str(packages / 'slipstream')!r})"
    said = told(start(tmp_path, f"import os; raise ValueError({listing})"))
    assert "(['slipstream'], [])" in said


@needs_bubblewrap
def test_environment_is_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    names = told(start(tmp_path, "import os; raise ValueError(' '.join(os.environ))"))
    assert "HOME" in names
    assert "OPENAI" not in names


GPU = {"LD_LIBRARY_PATH": "/usr/local/nvidia/lib64", "CUDA_VISIBLE_DEVICES": "3"}


@pytest.mark.parametrize("gpu", [True, False])
@pytest.mark.parametrize("kind", [NoSandbox, pytest.param(Sandbox, marks=needs_bubblewrap)])
def test_gpu_is_seen_alike_with_and_without_a_sandbox(
    kind: type[AnySandbox], gpu: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in GPU.items():
        monkeypatch.setenv(name, value)
    said = f"import os; raise ValueError([os.environ.get(name) for name in {list(GPU)}])"
    tree = write_engine(tmp_path / "t", (GENERATE, said))
    seen = told(ChildEngine(tree, tree, max_context=64, sandbox=kind(gpu=gpu)))
    assert str(list(GPU.values()) if gpu else [None, ""]) in seen


@pytest.mark.parametrize("why", ["", "bubblewrap is not installed"])
def test_chosen_box_has_the_gpu_if_the_challenge_has(
    why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sandbox, "problem", lambda: why)
    for gpu in (True, False):
        box = sandbox.choose(gpu=gpu)
        assert isinstance(box, NoSandbox if why else Sandbox)
        assert box._gpu is gpu


@needs_bubblewrap
def test_tree_and_system_are_read_only(tmp_path: Path) -> None:
    for number, path in enumerate(
        ("/variant/x", "/model/x", "/usr/x", "/inside/x", "/dev/x", "/x")
    ):
        said = told(start(tmp_path / str(number), f"open({path!r}, 'w')"))
        assert "Read-only file system" in said, path


@needs_bubblewrap
def test_limits_are_the_kernels(tmp_path: Path) -> None:
    code = (
        "import resource as r; "
        "raise ValueError([r.getrlimit(n) for n in (r.RLIMIT_FSIZE, r.RLIMIT_NOFILE)])"
    )
    said = told(start(tmp_path, code, file_bytes=4096, num_files=77))
    assert "[(4096, 4096), (77, 77)]" in said


@needs_bubblewrap
def test_tasks_are_counted_while_a_request_runs(tmp_path: Path) -> None:
    code = (
        "import threading, time; nap = dict(target=time.sleep, args=(60,), daemon=True); "
        "[threading.Thread(**nap).start() for _ in range(30)]; time.sleep(60)"
    )
    assert "tasks alive, limit 20" in told(start(tmp_path, code, num_tasks=20))


@pytest.mark.parametrize("box", BOXES)
def test_stopped_engine_does_no_work(box: AnySandbox, tmp_path: Path) -> None:
    code = """
        import threading
        if not hasattr(self, "count"):
            self.count = 0
            def work():
                while True:
                    self.count += 1
            threading.Thread(target=work, daemon=True).start()
        return [self.count % 8] * num_tokens
    """.strip()
    tree = write_engine(tmp_path / "t", (GENERATE, code))
    with ChildEngine(tree, tree, max_context=64, sandbox=box) as engine:
        engine.generate([1], 1)
        before = engine.cpu_s()
        time.sleep(0.5)
        assert engine.cpu_s() - before < 0.03
        engine.generate([1], 1)  # it wakes up again


WAKE_BY_TIMER = """
        import ctypes, signal, threading
        signal.signal(signal.SIGCONT, lambda *_: None)  # a kernel drops ignored timer signals
        if not hasattr(self, "timer"):
            libc, self.timer = ctypes.CDLL(None, use_errno=True), ctypes.c_void_p()
            event = (ctypes.c_int * 16)(0, 0, 18, 0)  # a signal, SIGCONT
            if libc.timer_create(1, event, ctypes.byref(self.timer)):
                raise OSError(ctypes.get_errno(), "timer_create")
            every = (ctypes.c_long * 4)(0, 1_000_000, 0, 1_000_000)
            libc.timer_settime(self.timer, 0, every, None)
            def work():
                while True:
                    pass
            threading.Thread(target=work, daemon=True).start()
        return [0] * num_tokens
""".strip()


@needs_bubblewrap
def test_timers_that_wake_the_stopped_are_refused(tmp_path: Path) -> None:
    assert "timer_create" in told(start(tmp_path, WAKE_BY_TIMER))


@pytest.mark.timed
def test_work_while_stopped_makes_an_engine_invalid(tmp_path: Path) -> None:
    """Without a sandbox, a timer that fires SIGCONT wakes a process up. Its CPU time tells."""
    tree = write_engine(tmp_path / "t", (GENERATE, WAKE_BY_TIMER))
    with ChildEngine(tree, tree, max_context=64) as engine:
        engine.generate([1], 1)
        time.sleep(0.5)
        with pytest.raises(InvalidOutputError, match=r"used \d\.\d\d s of CPU time while it was"):
            engine.generate([1], 1)


@pytest.mark.parametrize("box", BOXES)
@pytest.mark.parametrize("request_", ["load", "generate", "begin", "reveal"])
def test_engine_is_stopped_after_every_request(
    request_: str, box: AnySandbox, tmp_path: Path
) -> None:
    spin = "import threading; threading.Thread(target=spin, daemon=True).start(); "
    changes = {
        "load": ("return Engine()", f"{spin}return Engine()"),
        "generate": (GENERATE, f"{spin}{GENERATE}"),
        "begin": ("self.last = prompt[-1]", f"{spin}self.last = prompt[-1]"),
        "reveal": ("self.last = token", f"{spin}self.last = token"),
    }
    tree = write_engine(tmp_path / "t", changes[request_])
    with (tree / "engine" / "__init__.py").open("a") as source:
        source.write("\ndef spin():\n    while True: pass\n")
    with ChildEngine(tree, tree, max_context=64, sandbox=box) as engine:
        _assert_stopped(engine)  # after loading, before anything else was asked
        for ask in (
            lambda: engine.generate([1], 1),
            lambda: engine.begin([1]),
            lambda: engine.reveal(1),
        ):
            ask()
            _assert_stopped(engine)


def _assert_stopped(engine: ChildEngine) -> None:
    before = engine.cpu_s()
    time.sleep(0.2)
    assert engine.cpu_s() - before < 0.03


@needs_bubblewrap
def test_tmp_is_private_to_each_process(tmp_path: Path) -> None:
    code = (
        "import os; seen = os.path.exists('/tmp/left'); open('/tmp/left', 'w').close(); "
        "return [int(seen)] * num_tokens"
    )
    tree = write_engine(tmp_path / "t", (GENERATE, code))
    for _ in range(2):
        with ChildEngine(tree, tree, max_context=64, sandbox=Sandbox()) as engine:
            assert engine.generate([1], 1).tokens == (0,)
            assert engine.generate([1], 1).tokens == (1,)


def test_answer_before_the_question_is_invalid(tmp_path: Path) -> None:
    code = "import os, sys; os.write(int(sys.argv[1]), b'early!'); return [0] * num_tokens"
    tree = write_engine(tmp_path / "t", (GENERATE, code))
    with ChildEngine(tree, tree, max_context=64) as engine, pytest.raises(InvalidOutputError):
        engine.generate([1], 1)


@needs_bubblewrap
def test_killed_parent_takes_the_engine_along(tmp_path: Path) -> None:
    tree = write_engine(tmp_path / "t")
    code = (
        "import sys, time; from pathlib import Path;"
        "from slipstream.evaluation.child import ChildEngine;"
        "from slipstream.evaluation.sandbox import Sandbox;"
        f"tree = Path({str(tree)!r});"
        "engine = ChildEngine(tree, tree, max_context=64, sandbox=Sandbox());"
        "print('up', flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    assert parent.stdout.readline() == "up\n"
    assert _see(tree)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 5
    while _see(tree) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _see(tree)


def _see(tree: Path) -> list[str]:
    """Return the processes that have the tree mounted."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if str(tree) in (process / "mountinfo").read_text():
                found.append(process.name)
        except OSError:
            continue
    return found


@pytest.mark.timed
@needs_bubblewrap
def test_start_costs_little(tmp_path: Path) -> None:
    """Under 50 ms more than without; medians, because this machine is shared."""

    def cost(box: AnySandbox, name: str) -> float:
        tree = write_engine(tmp_path / name)
        times = []
        for _ in range(7):
            begun = time.perf_counter()
            ChildEngine(tree, tree, max_context=64, sandbox=box).close()
            times.append(time.perf_counter() - begun)
        return statistics.median(times)

    assert cost(Sandbox(), "a") - cost(NoSandbox(), "b") < 0.05


def test_missing_bubblewrap_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    real = shutil.which
    monkeypatch.setattr(
        sandbox.shutil, "which", lambda name: None if name == "bwrap" else real(name)
    )
    sandbox.problem.cache_clear()
    try:
        assert "bubblewrap is not installed" in sandbox.problem()
        assert "install" in sandbox.problem()
        assert isinstance(sandbox.choose(), NoSandbox)
    finally:
        monkeypatch.undo()
        sandbox.problem.cache_clear()


def test_bubblewrap_that_does_not_start_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "bwrap"
    broken.write_text(
        "#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n"
    )
    broken.chmod(0o755)
    monkeypatch.setattr(sandbox, "_bwrap", lambda: broken)
    monkeypatch.setattr(sandbox.shutil, "which", lambda _: str(broken))
    sandbox.problem.cache_clear()
    try:
        assert "No permissions to create new namespace" in sandbox.problem()
        assert "user namespaces may be switched off" in sandbox.problem()
    finally:
        monkeypatch.undo()
        sandbox.problem.cache_clear()


def test_unknown_processor_has_no_filter() -> None:
    with pytest.raises(KeyError):
        seccomp_program("vax")


@pytest.mark.skipif(shutil.which("cc") is None, reason="no compiler to read headers with")
def test_system_call_numbers_are_the_headers() -> None:
    include = "#include <asm/unistd.h>"
    done = subprocess.run(
        ["cc", "-E", "-dM", "-"], input=include, capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip("no kernel headers")
    known = {name: int(n) for name, n in re.findall(r"#define __NR_(\w+) (\d+)", done.stdout)}
    refused = _ARCHITECTURES[platform.machine()].refused
    checked = {name: known[name] for name in refused if name in known}
    assert len(checked) > 40
    assert checked == {name: refused[name] for name in checked}


def test_engines_on_a_gpu_find_the_compiler_of_its_kernels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever the CUDA toolkit is installed; without a GPU nobody looks for it."""
    compiler = tmp_path / "cuda" / "bin" / "nvcc"
    compiler.parent.mkdir(parents=True)
    (tmp_path / "cuda" / "nvvm").mkdir()
    compiler.write_text("#!/bin/sh\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", f"{compiler.parent}:/usr/bin")
    assert environment("/tmp", gpu=True)["PATH"].split(":")[0] == str(compiler.parent)
    assert str(tmp_path) not in environment("/tmp")["PATH"]
    launch = Sandbox(gpu=True).launch(tmp_path, tmp_path, (0, 1, 2), Limits())
    assert str(tmp_path / "cuda") in launch.command
    launch = Sandbox().launch(tmp_path, tmp_path, (0, 1, 2), Limits())
    assert str(tmp_path / "cuda") not in launch.command


def toolkit(root: Path, monkeypatch: pytest.MonkeyPatch, *, whole: bool = True) -> list[Path]:
    (root / "bin").mkdir(parents=True)
    (root / "bin" / "nvcc").touch()
    if whole:
        (root / "nvvm").mkdir()
    monkeypatch.setattr(sandbox.shutil, "which", lambda _: str(root / "bin" / "nvcc"))
    return sandbox._toolkit_folders()


def test_a_cuda_toolkit_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert toolkit(tmp_path / "cuda", monkeypatch) == [tmp_path / "cuda"]


def test_what_only_has_a_compiler_in_it_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not toolkit(tmp_path / ".local", monkeypatch, whole=False)


def test_what_holds_the_secret_too_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLIPSTREAM_HOME", str(tmp_path / "cuda" / "share" / "slipstream"))
    assert not toolkit(tmp_path / "cuda", monkeypatch)
