"""The shape of the house: rooms, links, and which way imports point."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# Imports point down this list; rooms on one line don't import each other.
ORDER = [
    *(["cli"], ["graph", "serving"], ["agents", "collab"]),
    *(["memory"], ["evaluation"], ["kernels"]),
]
LEVEL = {room: level for level, rooms in enumerate(ORDER) for room in rooms}
ROOMS = [room for rooms in ORDER[1:] for room in rooms]


def imported_rooms(path: Path, room: str) -> set[str]:
    """Return the rooms that a module imports, absolutely or relatively."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module or ""]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "slipstream" and len(parts) > 1:
                found.add(parts[1])
    return found - {room}


def modules(room: str) -> list[Path]:
    return (
        [ROOT / "src/slipstream/cli.py"] if room == "cli" else sorted((ROOT / room).rglob("*.py"))
    )


@pytest.mark.parametrize("room", LEVEL)
def test_imports_point_down(room: str) -> None:
    for path in modules(room):
        for other in imported_rooms(path, room):
            assert LEVEL[other] > LEVEL[room], f"{path.relative_to(ROOT)} imports {other}"


def test_the_import_test_sees_a_wrong_import(tmp_path: Path) -> None:
    path = tmp_path / "wrong.py"
    path.write_text("from slipstream.graph.state import LoopState\n")
    assert imported_rooms(path, "kernels") == {"graph"}


def test_only_graph_imports_langgraph() -> None:
    for room in set(ROOMS) - {"graph"}:
        for path in modules(room):
            assert "langgraph" not in path.read_text(), path


def test_engine_is_self_contained() -> None:
    """A variant runs with torch and safetensors alone, on a GPU with Triton."""
    standard = set(sys.stdlib_module_names) | {"torch", "safetensors"}
    for path in (ROOT / "kernels/engine").rglob("*.py"):
        allowed = standard | ({"triton"} if path.parent.name == "gpu" else set())
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                assert (node.module or "").split(".")[0] in allowed, path
            if isinstance(node, ast.Import):
                assert {alias.name.split(".")[0] for alias in node.names} <= allowed, path


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_are_linked_and_bare(room: str) -> None:
    link = ROOT / "src/slipstream" / room
    assert link.is_symlink()
    assert link.resolve() == ROOT / room
    assert not Path(link.readlink()).is_absolute()
    assert not (ROOT / room / "__init__.py").exists()


def test_importing_slipstream_is_light() -> None:
    code = (
        "import sys, slipstream;"
        "heavy = {'torch', 'langgraph', 'transformers', 'pandas', 'optuna'};"
        "print(sorted(heavy & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_export_loads() -> None:
    import slipstream

    for name in slipstream.__all__:
        assert getattr(slipstream, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'planer'"):
        _ = slipstream.planer  # type: ignore[attr-defined]
