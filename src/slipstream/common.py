"""What several commands share: opening a memory, times as people write them, posts on a screen."""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from rich.markup import escape

from slipstream.evaluation.errors import SlipstreamError

from .display import out

if TYPE_CHECKING:
    from slipstream.memory.board import Post
    from slipstream.memory.store import Memory

_UNITS_S = {"m": 60.0, "h": 3600.0, "d": 86400.0}


@contextmanager
def opened(url: str | None) -> "Iterator[Memory]":
    """Open a memory, and close it in the end."""
    from slipstream.memory.store import open_memory

    with open_memory(url) as store:
        yield store


def seconds(since: str) -> float:
    """Return a time as seconds since the epoch: some time ago, or a date."""
    if not since:
        return 0.0
    if ago := re.fullmatch(r"(\d+(?:\.\d+)?)([mhd])", since):
        return time.time() - float(ago[1]) * _UNITS_S[ago[2]]
    try:
        at = datetime.fromisoformat(since)
    except ValueError as error:
        raise SlipstreamError(
            f"--since {since!r}: write 30m, 12h, 7d, or a date like 2026-11-22"
        ) from error
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()


def when(at: float) -> str:
    """Return a time for people, in UTC."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M")


def print_posts(posts: "list[Post]") -> None:
    """Print posts as they stand on the board."""
    if not posts:
        out.print("nothing there")
    for one in posts:
        answer = f" ↩ {one.reply_to}" if one.reply_to else ""
        out.print(
            f"[bold]{escape(one.author)}[/] {one.id} {one.channel}{answer} {when(one.posted_at)}"
        )
        out.print(escape(one.text), highlight=False)
