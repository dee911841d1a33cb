"""The workshop's log is the lineage; what a kill left behind doesn't stop the next process."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from slipstream.kernels.levers import SEED_SETTINGS
from slipstream.kernels.variants import seed_tree
from slipstream.kernels.workshop import Workshop

SEED = seed_tree(SEED_SETTINGS)
CHILD = SEED.with_settings({**SEED_SETTINGS, "cache": "static"})
GRANDCHILD = CHILD.with_settings({**SEED_SETTINGS, "cache": "static", "fuse": "qkv"})


def git(path: Path, *arguments: str) -> str:
    command = ["git", "-C", str(path), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def lineage(path: Path, branch: str = "champion") -> list[str]:
    return git(path, "log", "--format=%s", branch).split("\n")[:-1]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "w.git"


@pytest.fixture
def workshop(path: Path) -> Iterator[Workshop]:
    opened = Workshop(path)
    opened.open()
    yield opened
    opened.close()


def test_log_is_the_lineage(workshop: Workshop) -> None:
    workshop.commit(SEED, None, "seed", 1_000_000_000)
    workshop.commit(CHILD, SEED.id, "x-001: cache", 1_000_000_001)
    workshop.commit(GRANDCHILD, CHILD.id, "x-002: fuse", 1_000_000_002)
    workshop.promote(GRANDCHILD.id)
    assert lineage(workshop.path) == ["x-002: fuse", "x-001: cache", "seed"]
    diff = git(workshop.path, "diff", f"variant/{SEED.id}", f"variant/{CHILD.id}")
    assert '+  "cache": "static"' in diff
    git(workshop.path, "fsck", "--strict")


def test_commit_holds_the_whole_tree(workshop: Workshop) -> None:
    workshop.commit(CHILD, None, "child", 1)
    branch = f"variant/{CHILD.id}"
    names = git(workshop.path, "ls-tree", "-r", "--name-only", branch).split()
    assert set(names) == set(CHILD.files)
    for name in names:
        assert git(workshop.path, "show", f"{branch}:{name}") == CHILD.files[name].decode()


def test_committing_again_changes_nothing(workshop: Workshop) -> None:
    workshop.commit(SEED, None, "seed", 1)
    before = git(workshop.path, "rev-parse", f"variant/{SEED.id}")
    workshop.commit(SEED, None, "seed, told otherwise", 9)
    assert git(workshop.path, "rev-parse", f"variant/{SEED.id}") == before


def test_opened_again_it_goes_on(path: Path, workshop: Workshop) -> None:
    workshop.commit(SEED, None, "seed", 1)
    workshop.close()
    again = Workshop(path)
    again.open()
    again.commit(CHILD, SEED.id, "x-001: cache", 2)
    again.promote(CHILD.id)
    again.close()
    assert lineage(path) == ["x-001: cache", "seed"]


def test_parent_must_have_been_committed(workshop: Workshop) -> None:
    with pytest.raises(KeyError):
        workshop.commit(CHILD, "never", "an orphan", 1)


def test_closed_workshop_says_so(path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"w\.git is not open"):
        Workshop(path).promote("x")


@pytest.mark.parametrize("branch", ["champion", f"variant/{CHILD.id}"])
def test_lock_left_by_a_kill_is_removed(path: Path, workshop: Workshop, branch: str) -> None:
    """Killed while it moved a branch, a process leaves the branch's lock behind."""
    workshop.commit(SEED, None, "seed", 1)
    workshop.promote(SEED.id)
    workshop.close()
    lock = path / "refs" / "heads" / f"{branch}.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    lock.write_bytes(b"")
    again = Workshop(path)
    again.open()
    again.commit(CHILD, SEED.id, "x-001: cache", 2)
    again.promote(CHILD.id)
    again.close()
    assert not lock.exists()
    assert lineage(path) == ["x-001: cache", "seed"]


@pytest.mark.parametrize("left", [[], ["objects"], ["branches"], ["objects", "refs", "refs/heads"]])
def test_half_made_repository_is_made_anew(path: Path, left: list[str]) -> None:
    """Killed while it made the repository, a process leaves some of its folders."""
    for name in left:
        (path / name).mkdir(parents=True)
    path.mkdir(exist_ok=True)
    workshop = Workshop(path)
    workshop.open()
    workshop.commit(SEED, None, "seed", 1)
    workshop.promote(SEED.id)
    workshop.close()
    assert lineage(path) == ["seed"]
    git(path, "fsck", "--strict")
