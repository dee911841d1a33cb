"""Everything that came from outside a run's own code, in one file: so that it can be run again.

Model calls are kept with the hash of their request, and whatever else the run could not have
known (measurements, the time left, what somebody said meanwhile) under a name. A `Recorder` writes
while the run goes on, and gives a resumed run what it has been answered already; a `Player` answers
from the file alone, and says which call is the first that differs.
"""

import hashlib
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from slipstream.evaluation.errors import SlipstreamError
from slipstream.evaluation.redaction import redact_all

Json = Any
_SHOWN = 160


class Cassette(Protocol):
    """Where a run keeps, or gets, what comes from outside."""

    replaying: bool

    def call(self, occasion: str, request: dict[str, Json], ask: Callable[[], Json]) -> Json:
        """Return the answer to a request: what `ask` returns, or what is on the tape.

        Args:
            occasion: which call of the run this is; the same one when it is run again.
            request: what is asked, with a list of texts under "messages"; without keys on tape.
        """
        ...

    def observe(self, name: str, look: Callable[[], Json]) -> Json:
        """Return what was seen: by `look` now, or by whoever recorded it."""
        ...

    def note(self, name: str, value: Json) -> None:
        """Keep a value under a name; a later one of the same name replaces it."""
        ...

    def noted(self, name: str) -> Json:
        """Return a noted value, or None."""
        ...


class NoCassette:
    """Keeps nothing: for runs whose agents need no key. Satisfies `Cassette`."""

    replaying = False

    def call(
        self,
        occasion: str,  # noqa: ARG002
        request: dict[str, Json],  # noqa: ARG002
        ask: Callable[[], Json],
    ) -> Json:
        """Ask."""
        return ask()

    def observe(self, name: str, look: Callable[[], Json]) -> Json:  # noqa: ARG002
        """Look."""
        return look()

    def note(self, name: str, value: Json) -> None:
        """Keep nothing."""

    def noted(self, name: str) -> Json:  # noqa: ARG002
        """Return None."""
        return None


class _Tape:
    """What a file holds."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.texts: dict[str, str] = {}
        self.calls: dict[str, dict[str, Json]] = {}
        self.seen: dict[str, Json] = {}
        if path.exists():
            with path.open() as file:
                for line in file:
                    self._take(line)

    def _take(self, line: str) -> None:
        try:
            entry = json.loads(line)
        except ValueError:
            return  # the last line of a process that was killed while it wrote
        match entry.get("kind"):
            case "text":
                self.texts[entry["hash"]] = entry["text"]
            case "call":
                self.calls[entry["occasion"]] = entry
            case "seen":
                self.seen[entry["name"]] = entry["value"]


class Recorder(_Tape):
    """Writes each answer down before anybody acts on it. Satisfies `Cassette`."""

    replaying = False

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        if path.exists() and (content := path.read_bytes()) and not content.endswith(b"\n"):
            with path.open("ab") as file:  # a process was killed while it wrote
                file.write(b"\n")

    def call(self, occasion: str, request: dict[str, Json], ask: Callable[[], Json]) -> Json:
        """Ask, unless this very request was answered before the run was interrupted."""
        asked = _digest(request)
        known = self.calls.get(occasion)
        if known is not None and known["hash"] == asked["hash"]:
            return known["answer"]
        answer = redact_all(ask())
        entry = {"kind": "call", "number": len(self.calls) + 1, "occasion": occasion}
        entry |= {name: asked[name] for name in ("hash", "messages", "rest")} | {"answer": answer}
        new = {key: text for key, text in asked["texts"].items() if key not in self.texts}
        lines: list[dict[str, Json]] = [
            {"kind": "text", "hash": key, "text": text} for key, text in new.items()
        ]
        self._write(*lines, entry)
        self.texts |= new
        self.calls[occasion] = entry
        return answer

    def observe(self, name: str, look: Callable[[], Json]) -> Json:
        """Look, unless that was done before the run was interrupted."""
        if name not in self.seen:
            self.note(name, look())
        return self.seen[name]

    def note(self, name: str, value: Json) -> None:
        """Keep a value under a name."""
        clean = json.loads(json.dumps(redact_all(value)))
        self._write({"kind": "seen", "name": name, "value": clean})
        self.seen[name] = clean

    def noted(self, name: str) -> Json:
        """Return a noted value, or None."""
        return self.seen.get(name)

    def _write(self, *entries: dict[str, Json]) -> None:
        text = "".join(f"{json.dumps(entry, ensure_ascii=False)}\n" for entry in entries)
        with self._lock, self.path.open("a") as file:
            file.write(text)


class Player(_Tape):
    """Answers from the file alone. Satisfies `Cassette`.

    Raises:
        SlipstreamError: there is no such file.
    """

    replaying = True

    def __init__(self, path: Path) -> None:
        if not path.exists():
            raise SlipstreamError(
                f"{path}: no recording; runs whose agents are language models or commands have one"
            )
        super().__init__(path)
        self.played: set[str] = set()

    def call(
        self,
        occasion: str,
        request: dict[str, Json],
        ask: Callable[[], Json],  # noqa: ARG002
    ) -> Json:
        """Return the recorded answer.

        Raises:
            SlipstreamError: the request is not the recorded one, or there is none.
        """
        asked, known = _digest(request), self.calls.get(occasion)
        if known is None:
            raise SlipstreamError(f"replay: the recording has no call {occasion!r}")
        if known["hash"] != asked["hash"]:
            where = self._difference(known, asked)
            raise SlipstreamError(f"replay: call {known['number']} ({occasion}) differs: {where}")
        self.played.add(occasion)
        return known["answer"]

    def observe(self, name: str, look: Callable[[], Json]) -> Json:  # noqa: ARG002
        """Return what was seen then.

        Raises:
            SlipstreamError: nobody looked.
        """
        if name not in self.seen:
            raise SlipstreamError(f"replay: the recording has nothing under {name!r}")
        return self.seen[name]

    def note(self, name: str, value: Json) -> None:
        """Keep nothing: it is there."""

    def noted(self, name: str) -> Json:
        """Return a noted value, or None."""
        return self.seen.get(name)

    def _difference(self, known: dict[str, Json], asked: dict[str, Json]) -> str:
        for index, (then, now) in enumerate(
            zip(known["messages"], asked["messages"], strict=False), start=1
        ):
            if then != now:
                pair = self.texts.get(then, "").splitlines(), asked["texts"][now].splitlines()
                for was, is_ in zip(*pair, strict=False):
                    if was != is_:
                        return f"message {index}, {was[:_SHOWN]!r} was {is_[:_SHOWN]!r} now"
                return f"message {index} had {len(pair[0])} lines, now {len(pair[1])}"
        if len(known["messages"]) != len(asked["messages"]):
            return f"it had {len(known['messages'])} messages, now {len(asked['messages'])}"
        return f"{known['rest'][:_SHOWN]} was {asked['rest'][:_SHOWN]} now"


def _digest(request: dict[str, Json]) -> dict[str, Json]:
    """Return a request as it is kept: its texts by their hashes, and a hash of all of it."""
    clean = redact_all(request)
    texts = {_hash(text): text for text in clean["messages"]}
    messages = [_hash(text) for text in clean["messages"]]
    rest = json.dumps({k: v for k, v in clean.items() if k != "messages"}, sort_keys=True)
    return {
        "hash": _hash("\n".join([*messages, rest])),
        "messages": messages,
        "rest": rest,
        "texts": texts,
    }


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:24]
