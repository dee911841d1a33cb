"""Characters that nobody sees, and that have no business in a text by somebody else."""

import re

_UNSEEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2066-\u2069]")


def visible(text: str) -> str:
    """Return the text without control characters, zero-width and direction marks."""
    return _UNSEEN.sub("", text)
