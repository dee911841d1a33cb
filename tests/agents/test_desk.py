"""The coder's desk: confined to one tree, exact in its edits."""

import pytest

from slipstream.agents.desk import MAX_FILE, Desk, DeskError
from slipstream.kernels.levers import SEED_SETTINGS
from slipstream.kernels.variants import Tree, seed_tree

SEED = seed_tree(SEED_SETTINGS)
OUTSIDE = (
    "/etc/passwd",
    "../secret.py",
    "engine/../../secret.py",
    "engine/./norm.py",
    "engine//new.py",
    "levers.py",
    "engine",
    "engine/.hidden.py",
    "engine/run.sh",
    "~/.ssh/id.py",
    "engine/a\x00.py",
    "engine\\new.py",
    "engine/norm.py/new.py",
    f"engine/{'x' * 300}.py",
    "engine/a/b/c/d/e/f/g/h.py",
)


@pytest.mark.parametrize("path", OUTSIDE)
def test_nothing_outside_the_tree_is_read_or_written(path: str) -> None:
    desk = Desk(SEED)
    for act in (
        lambda: desk.read(path),
        lambda: desk.search("import", path),
        lambda: desk.edit(path, "a", "b"),
        lambda: desk.create(path, "x = 1\n"),
        lambda: desk.delete(path),
        lambda: desk.adopt({**SEED.files, path: b"x = 1\n"}),
    ):
        with pytest.raises(DeskError):
            act()
    assert desk.tree.id == SEED.id


def test_edits_are_exact_and_unique() -> None:
    desk = Desk(SEED)
    with pytest.raises(DeskError, match="stands 0 times"):
        desk.edit("engine/norm.py", "no such text", "x")
    with pytest.raises(DeskError, match=r"stands \d+ times"):
        desk.edit("engine/norm.py", "self", "x")
    desk.edit("engine/norm.py", "class RMSNorm:", "class RMSNorm:  # here")
    desk.create("engine/fast/extra.py", "x = 1\n")
    assert desk.changed == ["engine/fast/extra.py", "engine/norm.py"]
    desk.delete("engine/fast/extra.py")
    assert desk.changed == ["engine/norm.py"]
    assert b"# here" in desk.tree.files["engine/norm.py"]
    assert SEED.id == seed_tree(SEED_SETTINGS).id


def test_levers_are_set_not_edited() -> None:
    desk = Desk(SEED)
    with pytest.raises(DeskError, match="set_levers"):
        desk.edit("levers.json", '"threads": "all"', '"threads": "1"')
    desk.set_levers({"threads": "1"})
    assert desk.tree.settings == {**SEED_SETTINGS, "threads": "1"}
    assert desk.tree.engine_id == SEED.engine_id


def test_size_is_limited_and_keys_are_blacked_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "very-secret-value")
    desk = Desk(SEED)
    with pytest.raises(DeskError, match="too much"):
        desk.create("engine/big.py", "x" * (MAX_FILE + 1))
    desk.create("engine/key.py", "KEY = 'very-secret-value'\n")
    assert desk.tree.files["engine/key.py"] == b"KEY = '[redacted]'\n"


def test_search_names_lines() -> None:
    found = Desk(SEED).search("CLASS rmsnorm")
    assert found.startswith("engine/norm.py:")
    assert Desk(SEED).search("nowhere to be found") == "no line holds 'nowhere to be found'"


def test_foreign_trees_are_adopted_whole_or_not() -> None:
    desk = Desk(SEED)
    files = {**SEED.files, "engine/norm.py": b"x = 1\n"}
    del files["engine/draft.py"]
    desk.adopt(files)
    assert desk.tree == Tree(files)
    with pytest.raises(DeskError, match="not JSON"):
        Desk(SEED).adopt({**SEED.files, "levers.json": b"{"})
