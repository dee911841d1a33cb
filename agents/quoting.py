"""Text from elsewhere enters a prompt as data: fenced, capped, with where it comes from.

The fence carries a hash of the text, so no text can close its own fence. What a model makes of it
all the same is bounded by what its tools can do, which is decided elsewhere, in code.
"""

import hashlib
import re

MAX_CHARACTERS = 600
_UNSEEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2066-\u2069]")


def quote(text: str, source: str, limit: int = MAX_CHARACTERS) -> str:
    """Return a text as quoted data.

    Args:
        source: where it comes from; one line.
        limit: characters; what is longer is cut, and says so.
    """
    clean = _UNSEEN.sub("", text)
    if len(clean) > limit:
        clean = f"{clean[:limit]} […{len(clean) - limit} more characters]"
    mark = hashlib.sha256(clean.encode(errors="replace")).hexdigest()[:8]
    origin = " ".join(_UNSEEN.sub("", source).split())[:120]
    return f"<<data {mark} from {origin}>>\n{clean}\n<<end {mark}>>"
