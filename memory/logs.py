"""Logs of engines that failed, by the hash of their content, beside the database."""

import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from slipstream.evaluation.errors import SlipstreamError
from slipstream.evaluation.redaction import redact

_ID_LENGTH = 16


class LogStore:
    """A folder of texts, without keys. Writing is atomic; what is there is not written again."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def add(self, text: str) -> str:
        """Store a text; return its name, or "" if there is nothing to store."""
        if not text.strip():
            return ""
        content = redact(text).encode(errors="replace")
        name = hashlib.sha256(content).hexdigest()[:_ID_LENGTH]
        path = self.path(name)
        if not path.exists():
            self.root.mkdir(parents=True, exist_ok=True)
            descriptor, partial = tempfile.mkstemp(prefix=".new-", dir=self.root)
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
            Path(partial).rename(path)
        return name

    def read(self, name: str) -> str:
        """Return a stored text.

        Raises:
            SlipstreamError: it isn't here, or was changed.
        """
        try:
            content = self.path(name).read_bytes()
        except FileNotFoundError as error:
            raise SlipstreamError(f"log {name} is not in {self.root}") from error
        if hashlib.sha256(content).hexdigest()[:_ID_LENGTH] != name:
            raise SlipstreamError(f"log {name} in {self.root} was changed")
        return content.decode()

    def names(self) -> Iterator[str]:
        """Yield the names of all stored texts."""
        yield from sorted(path.stem for path in self.root.glob("*.txt"))

    def path(self, name: str) -> Path:
        """Return where a text lies."""
        return self.root / f"{name}.txt"
