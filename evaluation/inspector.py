"""Static inspection: what in a changed source deserves a second look before it is believed.

A warning layer, never the gate: text can be written around any pattern, and an honest engine may
have threads. The sandbox, the audits and the statistics decide.
"""

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Suspicion:
    """One suspicious line."""

    path: str
    line: int
    what: str
    code: str


_MODULES = {
    "socket": "network",
    "urllib": "network",
    "http": "network",
    "requests": "network",
    "ctypes": "calls into the C library",
    "subprocess": "starts processes",
    "multiprocessing": "starts processes",
    "threading": "threads: work may go on off the clock",
    "concurrent": "threads: work may go on off the clock",
    "asyncio": "work may go on off the clock",
    "signal": "signals",
    "importlib": "changes what is imported",
    "pickle": "can run code when it is read",
    "marshal": "can run code when it is read",
    "gc": "looks at objects that it was not given",
    "inspect": "looks at who called it",
    "time": "clocks: an engine has no use for them",
    "datetime": "clocks: an engine has no use for them",
    "random": "chance: a greedy engine has no use for it",
    "tempfile": "files outlive a request",
    "shelve": "files outlive a request",
    "sqlite3": "files outlive a request",
}
_CALLS = {
    "open": "reads or writes a file",
    "exec": "runs text as code",
    "eval": "runs text as code",
    "compile": "runs text as code",
    "__import__": "changes what is imported",
    "fork": "starts processes",
    "system": "starts processes",
    "getenv": "reads the environment",
    "_getframe": "looks at who called it",
    "setprofile": "hooks into the interpreter",
    "settrace": "hooks into the interpreter",
}
_ATTRIBUTES = {
    "environ": "reads the environment",
    "meta_path": "changes what is imported",
    "path_hooks": "changes what is imported",
    "modules": "reaches other modules",
    "argv": "reads the worker's arguments",
    "__main__": "reaches the worker",
}
# The engine's doors: state that is set in one and read in another can tell them apart.
_DOORS = ("generate", "begin", "reveal")


def inspect_change(before: Mapping[str, bytes], after: Mapping[str, bytes]) -> list[Suspicion]:
    """Return warnings about lines that are new in `after`; what was there before is not repeated.

    Args:
        before, after: files of two trees by path. A file that isn't Python has no warnings.
    """
    found: list[Suspicion] = []
    for path, content in sorted(after.items()):
        if not path.endswith(".py") or before.get(path) == content:
            continue
        old = set(before.get(path, b"").decode(errors="replace").splitlines())
        lines = content.decode(errors="replace").splitlines()
        try:
            tree = ast.parse("\n".join(lines))
        except SyntaxError as error:
            found.append(Suspicion(path, error.lineno or 0, "is not Python", str(error.msg)))
            continue
        for line, what in sorted({*_suspicious(tree), *_door_state(tree)}):
            code = lines[line - 1]
            if code not in old:
                found.append(Suspicion(path, line, what, code.strip()))
    return found


def _suspicious(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if what := _MODULES.get(alias.name.partition(".")[0]):
                    yield node.lineno, what
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            if what := _MODULES.get((node.module or "").partition(".")[0]):
                yield node.lineno, what
        elif isinstance(node, ast.Call):
            called = node.func
            name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
            if what := _CALLS.get(name):
                yield node.lineno, what
        elif isinstance(node, ast.Attribute) and (what := _ATTRIBUTES.get(node.attr)):
            yield node.lineno, what


def _door_state(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Find attributes that one door sets and another one, not the first's own code, reads."""
    for owner in ast.walk(tree):
        if not isinstance(owner, ast.ClassDef):
            continue
        doors = {f.name: f for f in owner.body if isinstance(f, ast.FunctionDef)}
        sets = {name: _own_attributes(f, ast.Store) for name, f in doors.items() if name in _DOORS}
        for reader in _DOORS:
            reads = _own_attributes(doors[reader], ast.Load) if reader in doors else {}
            for setter, names in sets.items():
                shared = names.keys() & reads.keys() if {setter, reader} & {"generate"} else set()
                if setter != reader:
                    for name in sorted(shared):
                        what = f"`{reader}` depends on what `{setter}` left in self.{name}"
                        yield reads[name], what


def _own_attributes(function: ast.FunctionDef, context: type[ast.expr_context]) -> dict[str, int]:
    return {
        node.attr: node.lineno
        for node in ast.walk(function)
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, context)
        and isinstance(node.value, ast.Name)
        and node.value.id == "self"
    }
