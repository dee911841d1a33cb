"""Trees are named by content and stored once."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from slipstream.kernels.levers import SEED_SETTINGS
from slipstream.kernels.variants import Tree, VariantStore, seed_tree


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
