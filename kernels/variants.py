"""Variants: one engine source tree plus its lever settings, named by the hash of its content.

A tree is a package `engine/`, or the files of a server and the `manifest.json` that starts it;
beside either lies `levers.json`. It is stored once under its name and never changed.
"""

import difflib
import hashlib
import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

SEED_ENGINE = Path(__file__).resolve().parent / "engine"
LEVERS, MANIFEST = "levers.json", "manifest.json"
MAX_TREE = 4_000_000  # bytes
_ID_LENGTH = 12
_PRUNED = ".pruned"


@dataclass(frozen=True)
class Tree:
    """The files of a variant, by path relative to its root."""

    files: dict[str, bytes]

    @cached_property
    def id(self) -> str:
        """The variant's name: a hash of paths and contents."""
        return _digest(self.files)

    @cached_property
    def engine_id(self) -> str:
        """A hash of the source alone: equal for variants that differ in levers only."""
        return _digest({p: c for p, c in self.files.items() if p != LEVERS})

    @property
    def serves(self) -> bool:
        """Whether it is a server behind the challenge's contract."""
        return MANIFEST in self.files

    @property
    def settings(self) -> dict[str, str]:
        """The lever settings in `levers.json`."""
        settings: dict[str, str] = json.loads(self.files[LEVERS])
        return settings

    def with_settings(self, settings: dict[str, str]) -> "Tree":
        """Return this tree with other lever settings."""
        return Tree({**self.files, LEVERS: _levers_json(settings)})


def seed_tree(settings: dict[str, str]) -> Tree:
    """Return the shipped engine with `settings`."""
    return Tree({**_seed_files(), LEVERS: _levers_json(settings)})


def read_tree(root: Path) -> Tree:
    """Read a tree from disk, caches and hidden files left out."""
    return Tree(
        {
            path.relative_to(root).as_posix(): path.read_bytes()
            for path in sorted(root.rglob("*"))
            if path.is_file() and not _is_litter(path.relative_to(root))
        }
    )


def difference(before: Tree, after: Tree) -> str:
    """Return what changed from one tree to another, as a unified diff; empty if nothing did."""
    lines: list[str] = []
    for path in sorted(before.files.keys() | after.files.keys()):
        old, new = (tree.files.get(path, b"").decode(errors="replace") for tree in (before, after))
        names = f"{before.id}/{path}", f"{after.id}/{path}"
        lines += difflib.unified_diff(old.splitlines(), new.splitlines(), *names, lineterm="")
    return "\n".join(lines)


def _seed_files() -> dict[str, bytes]:
    return {f"engine/{path}": content for path, content in read_tree(SEED_ENGINE).files.items()}


def _is_litter(path: Path) -> bool:
    return any(part == "__pycache__" or part.startswith(".") for part in path.parts)


def _levers_json(settings: dict[str, str]) -> bytes:
    return (json.dumps(dict(sorted(settings.items())), indent=2) + "\n").encode()


def _digest(files: dict[str, bytes]) -> str:
    digest = hashlib.sha256()
    for path, content in sorted(files.items()):
        digest.update(f"{path}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()[:_ID_LENGTH]


class VariantStore:
    """Trees on disk by name. Writing is atomic, and writing a stored tree again does nothing.

    Trees are never changed, so files with the same content share their bytes (hard links).
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._written: dict[bytes, Path] = {}  # content → a stored file that holds it

    def path(self, variant: str) -> Path:
        """Return where the tree of `variant` lies.

        Raises:
            FileNotFoundError: no such variant is stored.
        """
        path = self.root / variant
        if not path.is_dir():
            raise FileNotFoundError(f"variant {variant!r} is not in {self.root}")
        return path

    def read(self, variant: str) -> Tree:
        """Read a stored tree."""
        return read_tree(self.path(variant))

    def names(self) -> list[str]:
        """Return the variants that are stored."""
        folders = self.root.iterdir() if self.root.is_dir() else ()
        return sorted(f.name for f in folders if f.is_dir() and not f.name.startswith("."))

    def pruned(self) -> set[str]:
        """Return the variants that were removed on purpose."""
        path = self.root / _PRUNED
        return set(path.read_text().split()) if path.exists() else set()

    def remove(self, variant: str) -> None:
        """Remove a stored tree for good, and remember that it was on purpose."""
        with (self.root / _PRUNED).open("a") as file:
            file.write(f"{variant}\n")
        grave = self.root / f".old-{variant}"
        (self.root / variant).rename(grave)  # all of it is gone at once
        shutil.rmtree(grave)

    def add(self, tree: Tree) -> Path:
        """Store a tree and return its folder."""
        target = self.root / tree.id
        if target.is_dir():
            return target
        self.root.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=".new-", dir=self.root))
        try:
            for folder in {(staging / name).parent for name in tree.files}:
                folder.mkdir(parents=True, exist_ok=True)
            for name, content in tree.files.items():
                self._write(staging / name, content)
            staging.chmod(0o755)
            try:
                os.rename(staging, target)  # noqa: PTH104  (Path.rename would hide the race)
            except OSError:
                if not target.is_dir():  # else another process stored the same tree first
                    raise
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        self._written = {content: target / name for name, content in tree.files.items()}
        return target

    def _write(self, path: Path, content: bytes) -> None:
        twin = self._written.get(content)
        if twin is not None:
            try:
                path.hardlink_to(twin)
            except OSError:  # gone, or a file system without links
                pass
            else:
                return
        path.write_bytes(content)
        if content.startswith(b"#!"):  # a program; trees have no other modes
            path.chmod(0o755)
