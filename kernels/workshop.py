"""The run's git workshop: every variant is a commit, so `git log` is the lineage.

Objects are written by dulwich, in this process: starting `git` for each commit costs more than all
the rest of the loop. The result is an ordinary repository for `git log` and `git diff`.
"""

import shutil
from pathlib import Path

from dulwich.index import commit_tree
from dulwich.objects import Blob, Commit, ObjectID
from dulwich.refs import Ref
from dulwich.repo import Repo

from .variants import Tree

_IDENTITY = b"slipstream <slipstream@localhost>"
_FILE = 0o100644


class Workshop:
    """A bare git repository with one branch per variant, `variant/ID`, and one named `champion`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._repo: Repo | None = None
        self._stored: set[ObjectID] = set()

    def open(self) -> None:
        """Open the repository; create it if it isn't there.

        One process works on a run at a time, so whatever is half done here was left by one that
        was killed.
        """
        for lock in self.path.rglob("*.lock"):
            lock.unlink()
        if not (self.path / "HEAD").exists():
            self._make()
        self._repo = Repo(str(self.path))

    def _make(self) -> None:
        """Make an empty repository beside, whole, and put it in its place at once."""
        staging = self.path.with_name(f"{self.path.name}.new")
        for left in (staging, self.path):
            shutil.rmtree(left, ignore_errors=True)
        staging.mkdir(parents=True)
        Repo.init_bare(str(staging), default_branch=b"champion").close()
        staging.rename(self.path)

    def close(self) -> None:
        """Release the repository's files."""
        if self._repo is not None:
            self._repo.close()

    def commit(self, tree: Tree, parent: str | None, message: str, when: int) -> None:
        """Add a commit for `tree` on top of `parent`'s; does nothing if it is there.

        Args:
            parent: the parent variant's name, or None for a root.
            message: the hypothesis.
            when: committer time in seconds since the epoch.

        Raises:
            KeyError: the parent was never committed here.
        """
        repo, ref = self._opened(), _ref(tree.id)
        if ref in repo.refs:
            return
        commit = Commit()
        commit.parents = [] if parent is None else [repo.refs[_ref(parent)]]
        commit.tree = self._store(tree)
        commit.author = commit.committer = _IDENTITY
        commit.author_time = commit.commit_time = when
        commit.author_timezone = commit.commit_timezone = 0
        commit.message = message.encode()
        repo.object_store.add_object(commit)
        repo.refs[ref] = commit.id  # last: where the branch is, everything below it is

    def promote(self, variant: str) -> None:
        """Point the branch `champion` at a variant."""
        repo = self._opened()
        repo.refs[Ref(b"refs/heads/champion")] = repo.refs[_ref(variant)]

    def _store(self, tree: Tree) -> ObjectID:
        """Write a tree's files; those written before (most of them) are not written again."""
        store = self._opened().object_store
        entries = []
        for path, content in tree.files.items():
            blob = Blob.from_string(content)
            if blob.id not in self._stored:
                store.add_object(blob)
                self._stored.add(blob.id)
            entries.append((path.encode(), blob.id, _FILE))
        return commit_tree(store, entries)

    def _opened(self) -> Repo:
        if self._repo is None:
            raise RuntimeError(f"workshop {self.path} is not open")
        return self._repo


def _ref(variant: str) -> Ref:
    return Ref(f"refs/heads/variant/{variant}".encode())
