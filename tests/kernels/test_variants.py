"""Trees are named by content, stored once, and committed to the workshop as a lineage."""

import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from slipstream.kernels.levers import SEED_SETTINGS
from slipstream.kernels.variants import Tree, VariantStore, seed_tree
from slipstream.kernels.workshop import Workshop


def test_name_depends_on_content_alone() -> None:
    first, again = (
        seed_tree({"cache": "static", "fuse": "qkv"}),
        seed_tree({"fuse": "qkv", "cache": "static"}),
    )
    assert first.id == again.id
    assert first.id != seed_tree({"cache": "growing"}).id
    assert first.engine_id == seed_tree(SEED_SETTINGS).engine_id
    moved = Tree({**first.files, "engine/extra.py": b""})
    assert moved.engine_id != first.engine_id


def test_content_cannot_slide_between_files() -> None:
    assert Tree({"a": b"x", "b": b""}).id != Tree({"a": b"", "b": b"x"}).id
    assert Tree({"ab": b"c"}).id != Tree({"a": b"bc"}).id


def test_store_returns_what_was_added(tmp_path: Path) -> None:
    store, tree = VariantStore(tmp_path), seed_tree(SEED_SETTINGS)
    path = store.add(tree)
    (path / "engine/__pycache__").mkdir()
    (path / "engine/__pycache__/x.pyc").write_bytes(b"litter")
    assert store.read(tree.id) == tree
    with pytest.raises(FileNotFoundError, match="variant 'nope'"):
        store.path("nope")


def test_many_writers_store_one_tree_once(tmp_path: Path) -> None:
    store, tree = VariantStore(tmp_path), seed_tree(SEED_SETTINGS)
    with ThreadPoolExecutor(8) as pool:
        paths = set(pool.map(lambda _: store.add(tree), range(32)))
    assert paths == {tmp_path / tree.id}
    assert [p.name for p in tmp_path.iterdir()] == [tree.id]
    assert store.read(tree.id) == tree


def test_workshop_log_is_the_lineage(tmp_path: Path) -> None:
    workshop = Workshop(tmp_path / "w.git")
    workshop.open()
    seed = seed_tree(SEED_SETTINGS)
    child = seed.with_settings({**SEED_SETTINGS, "cache": "static"})
    grandchild = child.with_settings({**SEED_SETTINGS, "cache": "static", "fuse": "qkv"})
    workshop.commit(seed, None, "seed", 1_000_000_000)
    workshop.commit(child, seed.id, "x-001: cache", 1_000_000_001)
    workshop.commit(grandchild, child.id, "x-002: fuse", 1_000_000_002)
    workshop.commit(grandchild, child.id, "x-002: fuse", 1_000_000_009)  # again: nothing changes
    workshop.promote(grandchild.id)

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(workshop.path), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    log = git("log", "--format=%s", "champion").split("\n")[:-1]
    assert log == ["x-002: fuse", "x-001: cache", "seed"]
    diff = git("diff", f"variant/{seed.id}", f"variant/{child.id}")
    assert '+  "cache": "static"' in diff
    git("fsck", "--strict")
    tree = git("ls-tree", "-r", "--name-only", "champion").split()
    assert set(tree) == set(seed.files)


def test_parent_must_have_been_committed(tmp_path: Path) -> None:
    workshop = Workshop(tmp_path / "w.git")
    workshop.open()
    with pytest.raises(KeyError):
        workshop.commit(seed_tree({"fuse": "qkv"}), "never", "an orphan", 1)
    with pytest.raises(RuntimeError, match=r"w\.git is not open"):
        Workshop(tmp_path / "w.git").promote("x")
