"""A coder's desk: the files of one variant, and nothing else.

The files lie in memory, as the tree that they will become, so there is no path from here to
anything outside: a name that isn't one of the tree's is refused, not resolved.
"""

import json
import re
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from slipstream.evaluation.redaction import redact
from slipstream.kernels.variants import LEVERS, MANIFEST, MAX_TREE, Tree

MAX_FILE = 200_000  # bytes
MAX_SHOWN = 16_000  # characters of one answer
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
_CATALOGUE = "levers.toml"
_MAX_DEPTH = 6
_SOURCES = (".py", ".cpp", ".h", ".cu", ".cuh")
_SERVERS = (*_SOURCES, ".json", ".yaml", ".toml", ".sh", ".jinja", ".txt")
_MAX_HITS = 60


class DeskError(Exception):
    """What was asked for can't be done; the text says why, for whoever asked."""


@dataclass
class Desk:
    """The files of a tree, to be read and edited."""

    parent: Tree
    _files: dict[str, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._files = dict(self.parent.files)

    @property
    def tree(self) -> Tree:
        """The tree as it is now."""
        return Tree(dict(self._files))

    @property
    def changed(self) -> list[str]:
        """The files that differ from the parent's."""
        names = self._files.keys() | self.parent.files.keys()
        return sorted(n for n in names if self._files.get(n) != self.parent.files.get(n))

    def list_files(self) -> str:
        """Return the names of all files, with their number of lines."""
        lines = {name: content.count(b"\n") for name, content in sorted(self._files.items())}
        return "\n".join(f"{name}  {count} lines" for name, count in lines.items())

    def read(self, path: str, first: int = 1, count: int = 400) -> str:
        """Return lines of a file, numbered.

        Raises:
            DeskError: no such file.
        """
        lines = self._text(path).splitlines()
        shown = lines[first - 1 : first - 1 + count]
        text = "\n".join(f"{number:4} {line}" for number, line in enumerate(shown, start=first))
        more = len(lines) - (first - 1 + len(shown))
        return _capped(text) + (f"\n[{more} more lines]" if more > 0 else "")

    def search(self, text: str, path: str = "") -> str:
        """Return the lines that hold a text, upper or lower case, in one file or in all."""
        if not text.strip():
            raise DeskError("nothing to search for")
        names = [path] if path else sorted(self._files)
        hits = [
            f"{name}:{number}: {line.strip()[:200]}"
            for name in names
            for number, line in enumerate(self._text(name).splitlines(), start=1)
            if text.lower() in line.lower()
        ]
        if not hits:
            return f"no line holds {text!r}"
        more = f"\n[{len(hits) - _MAX_HITS} more]" if len(hits) > _MAX_HITS else ""
        return "\n".join(hits[:_MAX_HITS]) + more

    def edit(self, path: str, old: str, new: str) -> str:
        """Replace a text that stands exactly once in a file.

        Raises:
            DeskError: no such file, or the text isn't there, or several times.
        """
        content = self._text(path)
        if content.encode() != self._files[path]:
            raise DeskError(f"{path} is no text: it can't be edited")
        count = content.count(old) if old else 0
        if count != 1:
            where = "is empty" if not old else f"stands {count} times in {path}"
            raise DeskError(f"the text to replace {where}; it has to stand there exactly once")
        if old == new:
            raise DeskError("the new text is the old one")
        self._write(path, content.replace(old, new))
        return f"{path}: replaced"

    def create(self, path: str, content: str) -> str:
        """Make a new file.

        Raises:
            DeskError: it is there already, or it can't be part of an engine.
        """
        if path in self._files:
            raise DeskError(f"{path} is there already: edit it")
        self.check_name(path)
        self._write(path, content)
        return f"{path}: created"

    def delete(self, path: str) -> str:
        """Remove a file.

        Raises:
            DeskError: no such file.
        """
        self._text(path)
        if path in (LEVERS, _CATALOGUE, MANIFEST):
            raise DeskError(f"{path} stays" + (": set levers" if path == LEVERS else ""))
        del self._files[path]
        return f"{path}: deleted"

    def set_levers(self, settings: dict[str, str]) -> str:
        """Set levers; the others stay."""
        tree = self.tree.with_settings({**self.tree.settings, **settings})
        self._files = dict(tree.files)
        return "levers: " + ", ".join(f"{name}={value}" for name, value in settings.items())

    def adopt(self, files: dict[str, bytes]) -> None:
        """Take over files that somebody wrote elsewhere.

        Raises:
            DeskError: one of them can't be part of an engine.
        """
        for path, content in files.items():
            if content == self._files.get(path):
                continue
            if path == LEVERS:
                self.set_levers(_settings(content))
                continue
            if path not in self._files:
                self.check_name(path)
            self._write(path, content.decode(errors="replace"))
        for path in set(self._files) - set(files):
            self.delete(path)

    def admits(self, path: str) -> bool:
        """Whether a file of this name is part of the tree, or can be."""
        if path in self._files:
            return True
        try:
            self.check_name(path)
        except DeskError:
            return False
        return True

    def check_name(self, path: str) -> None:
        """Make sure that a file of this name can be part of the tree.

        Raises:
            DeskError: it can't.
        """
        parts = PurePosixPath(path).parts
        serves = self.parent.serves
        inside = serves or (len(parts) > 1 and parts[0] == "engine")
        named = all(_NAME.fullmatch(part) for part in parts) and "/".join(parts) == path
        suffixes = _SERVERS if serves else _SOURCES
        good = inside and named and 0 < len(parts) <= _MAX_DEPTH and path.endswith(suffixes)
        if not good:
            where = "NAME" if serves else "engine/NAME"
            raise DeskError(
                f"{path!r} can't be part of an engine: write {where}, with {', '.join(suffixes)}"
            )
        folders = {str(folder) for folder in PurePosixPath(path).parents}
        if folders & self._files.keys() or any(n.startswith(f"{path}/") for n in self._files):
            raise DeskError(f"{path!r}: a file can't be a folder, too")

    def _text(self, path: str) -> str:
        if path not in self._files:
            raise DeskError(f"no file {path!r} here; list_files names all there are")
        return self._files[path].decode(errors="replace")

    def _write(self, path: str, content: str) -> None:
        if path == LEVERS:
            raise DeskError("levers.json is not edited: set_levers changes it")
        if path == _CATALOGUE:
            raise DeskError("levers.toml stays: it says which levers there are")
        data = redact(content).encode(errors="replace")
        rest = sum(len(held) for name, held in self._files.items() if name != path)
        if len(data) > MAX_FILE or rest + len(data) > MAX_TREE:
            raise DeskError(f"{path}: {len(data)} bytes are too much")
        self._files[path] = data


def _settings(content: bytes) -> dict[str, str]:
    try:
        found = json.loads(content)
    except ValueError as error:
        raise DeskError(f"levers.json is not JSON: {error}") from error
    if not isinstance(found, dict) or not all(isinstance(v, str) for v in found.values()):
        raise DeskError("levers.json has to map levers to values")
    return found


def _capped(text: str) -> str:
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}\n[cut: ask for fewer lines]"
