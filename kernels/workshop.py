"""The run's git workshop: every variant is a commit, so `git log` is the lineage.

Commits are written with one `git fast-import` each: no checkout, no index, about 5 ms.
"""

import subprocess
from pathlib import Path

from .variants import Tree

_IDENTITY = b"slipstream <slipstream@localhost>"


class Workshop:
    """A bare git repository with one ref per variant, `refs/heads/variant/ID`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def open(self) -> None:
        """Create the repository if it isn't there."""
        if not (self.path / "HEAD").exists():
            self.path.mkdir(parents=True, exist_ok=True)
            self._git("init", "--quiet", "--bare", "--initial-branch=champion")

    def commit(self, tree: Tree, parent: str | None, message: str, when: int) -> None:
        """Add a commit for `tree` on top of `parent`'s; does nothing if it is there.

        Args:
            parent: the parent variant's name, or None for a root.
            message: the hypothesis.
            when: committer time in seconds since the epoch.
        """
        ref = f"refs/heads/variant/{tree.id}"
        if self.has(tree.id):
            return
        text = message.encode()
        stream = [
            f"commit {ref}\n".encode(),
            b"committer %s %d +0000\n" % (_IDENTITY, when),
            b"data %d\n%s\n" % (len(text), text),
        ]
        if parent is not None:
            stream.append(f"from refs/heads/variant/{parent}^0\n".encode())
        stream.append(b"deleteall\n")
        for path, content in sorted(tree.files.items()):
            stream.append(f"M 100644 inline {path}\n".encode())
            stream.append(b"data %d\n%s\n" % (len(content), content))
        self._git("fast-import", "--quiet", "--force", stdin=b"".join(stream))

    def has(self, variant: str) -> bool:
        """Whether a commit for `variant` exists."""
        return (self.path / "refs/heads/variant" / variant).exists()

    def promote(self, variant: str) -> None:
        """Point the branch `champion` at a variant."""
        commit = (self.path / "refs/heads/variant" / variant).read_bytes()
        (self.path / "refs/heads/champion").write_bytes(commit)

    def diff(self, first: str, second: str) -> str:
        """Return `git diff` between two variants."""
        return self._git("diff", f"variant/{first}", f"variant/{second}").decode()

    def _git(self, *arguments: str, stdin: bytes | None = None) -> bytes:
        done = subprocess.run(
            ["git", "-C", str(self.path), *arguments], input=stdin, capture_output=True, check=False
        )
        if done.returncode:
            lines = done.stderr.decode(errors="replace").strip().splitlines() or ["no message"]
            reason = next((line for line in lines if line.startswith("fatal")), lines[-1])
            raise RuntimeError(f"git {arguments[0]} in {self.path}: {reason}")
        return done.stdout
