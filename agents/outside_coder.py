"""An outside coder: any command that reads a brief and leaves a changed tree behind.

Claude Code, Codex, Gemini CLI, aider, a script. It works in a folder with the variant's files and
gets the brief on its standard input and as BRIEF.md. It is a program of the user's own, so it runs
with the user's rights, but sees few of their variables; when its time is up, it ends with all that
it has started. What counts is the tree that it leaves, and that is judged like any other.
"""

import os
import secrets
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from slipstream.evaluation import sandbox
from slipstream.evaluation.errors import SlipstreamError
from slipstream.evaluation.redaction import redact
from slipstream.kernels.variants import LEVERS, MAX_TREE, Tree, read_tree
from slipstream.memory.costs import Cost
from slipstream.memory.records import Hypothesis, is_edit

from .desk import Desk, DeskError
from .prompting import brief_coder, prompt_of
from .quoting import quote
from .roles import CoderError, Workbench
from .session import Session

ALLOWED = ("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LC_ALL", "TERM", "TMPDIR", "TZ")
_MARK = "SLIPSTREAM_DESK"
_SHOWN = 2000
_BRIEF = "BRIEF.md"


class OutsideCoder:
    """Satisfies `Coder`.

    Args:
        command: as in a shell, without a shell's features.
        environment: names of variables that it may see besides `ALLOWED`.
        limit_s: for one hypothesis; a repair gets as much again.
    """

    def __init__(
        self,
        command: str,
        session: Session,
        *,
        environment: tuple[str, ...] = (),
        limit_s: float = 600.0,
    ) -> None:
        try:
            self._command = shlex.split(command)
        except ValueError as error:
            raise SlipstreamError(f"coder {command!r}: {error}") from error
        here = session.cassette.replaying or (self._command and shutil.which(self._command[0]))
        if not here:
            raise SlipstreamError(
                f"coder {command!r}: no such program; after cmd: comes a command line that starts "
                "with one on your PATH"
            )
        self.name = f"cmd:{Path(self._command[0]).name}"
        self._session, self._environment, self._limit_s = session, environment, limit_s

    def implement(self, hypothesis: Hypothesis, parent: Tree, bench: Workbench) -> Tree:
        """Return the tree that the command leaves.

        Raises:
            CoderError: it changed nothing, left something that is no engine, or took too long.
        """
        start = parent.with_settings(hypothesis.settings)
        if not is_edit(hypothesis):
            return start
        brief = _brief(hypothesis, start, bench)
        tree = self._work(hypothesis, start, brief, bench, "implement")
        if tree.engine_id == parent.engine_id:
            raise CoderError(f"{self.name} changed nothing")
        return tree

    def repair(
        self, hypothesis: Hypothesis, tree: Tree, error: str, bench: Workbench
    ) -> Tree | None:
        """Run the command again on its tree, with the error in the brief."""
        brief = (
            f"{_brief(hypothesis, tree, bench)}\n\nIt is written already, and fails:\n"
            f"{quote(error, 'the engine', 6000)}\nRepair it."
        )
        if not is_edit(hypothesis):
            return None
        try:
            mended = self._work(hypothesis, tree, brief, bench, f"repair of {tree.id}")
        except CoderError as reason:
            self._session.say("coder", f"{hypothesis.id}: no repair: {reason}", False)
            return None
        return None if mended.id == tree.id else mended

    def _work(
        self, hypothesis: Hypothesis, start: Tree, brief: str, bench: Workbench, what: str
    ) -> Tree:
        def work() -> dict[str, object]:
            return self._run(hypothesis, start, brief, min(self._limit_s, bench.left_s))

        request = {"model": self.name, "messages": [brief], "tree": start.id}
        done = self._session.cassette.call(f"coder {hypothesis.id} {what}", request, work)
        if done["problem"]:
            raise CoderError(str(done["problem"]))
        desk = Desk(start)
        try:
            kept = {path: start.files[path] for path in done.get("kept", ())}
            desk.adopt(kept | {path: text.encode() for path, text in done["files"].items()})
        except DeskError as error:
            raise CoderError(f"{self.name} left no engine: {error}") from error
        return desk.tree

    def _run(
        self, hypothesis: Hypothesis, start: Tree, brief: str, limit_s: float
    ) -> dict[str, object]:
        """Run the command in a folder of its own; return what it left, or what went wrong."""
        session, name = self._session, f"{hypothesis.run}|coder|{secrets.token_hex(6)}"
        if limit_s <= 0:
            return {"files": {}, "problem": "no time was left for it"}
        session.purse.commit(Cost(name, session.run, hypothesis.id, "coder", self.name))
        begun = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="slipstream-desk-") as scratch:
            folder = Path(scratch) / "variant"
            for path, content in {**start.files, _BRIEF: brief.encode()}.items():
                target = folder / path
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content)
            problem = "it was interrupted"
            try:
                problem = self._call(folder, brief, limit_s)
            finally:
                wall_s = time.monotonic() - begun
                session.costs.end(name, outcome=problem[:80] or "ok", wall_s=wall_s)
            if problem:
                return {"files": {}, "problem": problem}
            try:
                return _left(folder, Desk(start))
            except (OSError, UnicodeError) as error:
                return {"files": {}, "problem": f"what it left can't be read: {error}"}

    def _call(self, folder: Path, brief: str, limit_s: float) -> str:
        """Run the command and wait for it; return what went wrong, or nothing."""
        mark = secrets.token_hex(8)
        allowed = (*ALLOWED, *self._environment)
        environment = {n: os.environ[n] for n in allowed if n in os.environ} | {_MARK: mark}
        with (
            tempfile.TemporaryFile() as output,
            tempfile.TemporaryFile() as told,
        ):
            told.write(brief.encode())
            told.seek(0)
            try:
                child = subprocess.Popen(
                    [*_own_processes(), *self._command],
                    cwd=folder,
                    env=environment,
                    stdin=told,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            except OSError as error:
                return f"{self.name} doesn't start: {error.strerror}"
            end = time.monotonic() + limit_s
            try:
                while child.poll() is None and time.monotonic() < end:
                    self._session.check_stop()
                    with suppress(subprocess.TimeoutExpired):
                        child.wait(0.2)
                late = child.poll() is None
            finally:
                _end_all(mark, child)
            if late:
                return f"{self.name} was not done after {limit_s:.0f} s, and was stopped"
            if child.returncode:
                size = output.seek(0, os.SEEK_END)
                output.seek(max(0, size - _SHOWN))
                printed = redact(output.read().decode(errors="replace"))
                last = printed.strip().splitlines()[-1:] or [""]
                return f"{self.name} ended with code {child.returncode}: {last[0][:300]}"
        return ""


def _brief(hypothesis: Hypothesis, tree: Tree, bench: Workbench) -> str:
    told = prompt_of("outside_coder", serves=tree.serves)
    return f"{told}\n\n{brief_coder(hypothesis, bench)}"


def _left(folder: Path, desk: Desk) -> dict[str, object]:
    """Return the tree that lies in a folder, without what isn't part of an engine."""
    for path in folder.rglob("*"):
        if path.is_symlink():
            return {"files": {}, "problem": f"it left a link, {path.relative_to(folder)}"}
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    if size > 2 * MAX_TREE:
        return {"files": {}, "problem": f"it left {size} bytes: no engine is so large"}
    before, after = desk.tree.files, read_tree(folder).files
    if _BRIEF in before:
        after[_BRIEF] = before[_BRIEF]  # ours lay in its place
    else:
        after.pop(_BRIEF, None)
    if LEVERS not in after:
        return {"files": {}, "problem": f"it left no {LEVERS}"}
    kept = sorted(name for name, content in after.items() if before.get(name) == content)
    files = {
        name: content.decode(errors="replace")
        for name, content in after.items()
        if name not in kept and desk.admits(name)
    }
    return {"files": files, "kept": kept, "problem": ""}


def _own_processes() -> list[str]:
    """Return what gives a command a process namespace of its own, so that all of it ends with it.

    Where bubblewrap doesn't start, its processes are found by a mark in their environment.
    """
    if sandbox.problem():
        return []
    return [
        *(shutil.which("bwrap") or "bwrap", "--dev-bind", "/", "/", "--proc", "/proc"),
        *("--unshare-pid", "--die-with-parent", "--"),
    ]


def _end_all(mark: str, child: "subprocess.Popen[bytes]") -> None:
    """Kill the command and whatever it has started, in whatever session that is now."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    for _ in range(20):
        found = list(_marked(mark))
        for process in found:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(process, signal.SIGKILL)
        if child.poll() is None:
            child.kill()
            child.wait()
        if not found:
            return
        time.sleep(0.05)


def _marked(mark: str) -> Iterator[int]:
    """Yield the processes whose environment holds the mark."""
    wanted = f"{_MARK}={mark}".encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with suppress(OSError):
                if wanted in (entry / "environ").read_bytes().split(b"\0"):
                    yield int(entry.name)
