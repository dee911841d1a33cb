"""Text from elsewhere enters a prompt as data: fenced, capped, with where it comes from.

The fence carries a hash of the text, so no text can close its own fence. What a model makes of it
all the same is bounded by what its tools can do, which is decided elsewhere, in code.
"""

import hashlib

from slipstream.evaluation.plain_text import visible

MAX_CHARACTERS = 600
_MARK_LENGTH = 16  # in hex: nobody finds a text that holds that much of its own hash


def quote(text: str, source: str, limit: int = MAX_CHARACTERS) -> str:
    """Return a text as quoted data.

    Args:
        source: where it comes from; one line.
        limit: characters; what is longer is cut, and says so.
    """
    clean = visible(text)
    if len(clean) > limit:
        clean = f"{clean[:limit]} […{len(clean) - limit} more characters]"
    mark = hashlib.sha256(clean.encode(errors="replace")).hexdigest()[:_MARK_LENGTH]
    origin = " ".join(visible(source).split())[:120]
    return f"<<data {mark} from {origin}>>\n{clean}\n<<end {mark}>>"
