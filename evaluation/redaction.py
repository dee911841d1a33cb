"""Keys don't belong into anything that is written down: they are blacked out on the way.

What counts as a key: the values of environment variables that are named like one, and text that
looks like a key of a service that is used here.
"""

import os
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

_NAMED = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL", re.IGNORECASE)
_LEAST = 8  # shorter values are words, and would black out half of a text
_SHAPES = re.compile(
    r"(?<![A-Za-z0-9])sk-[A-Za-z0-9_-]{16,}|hf_[A-Za-z0-9]{16,}|gh[pousr]_[A-Za-z0-9]{20,}"
    r"|github_pat_\w{20,}|AKIA[0-9A-Z]{16}|(?<=[Bb]earer )[A-Za-z0-9._~+/-]{16,}"
)
_BLACK = "[redacted]"


def redact(text: str) -> str:
    """Return the text with every key blacked out."""
    known = _known(tuple(os.environ.items()))
    if known is not None:
        text = known.sub(_BLACK, text)
    return _SHAPES.sub(_BLACK, text)


def redact_all(value: Any) -> Any:
    """Return a value of JSON's kinds with the keys in all its texts blacked out."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return {redact_all(name): redact_all(held) for name, held in value.items()}
    if isinstance(value, list | tuple):
        if all(isinstance(held, int | float) for held in value):
            return value  # tokens, figures: long, and without a text
        return [redact_all(held) for held in value]
    return value


@lru_cache(maxsize=4)
def _known(environment: tuple[tuple[str, str], ...]) -> re.Pattern[str] | None:
    """Return what matches the keys of an environment, the longest first."""
    values = {v for name, v in environment if _NAMED.search(name) and len(v) >= _LEAST}
    if not values:
        return None
    return re.compile("|".join(re.escape(v) for v in sorted(values, key=len, reverse=True)))
