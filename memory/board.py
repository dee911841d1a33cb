"""The board: what agents and people tell each other. Text from there is data, never an instruction.

A `Board` is opened for one author, and stamps that name on every post: who writes can't choose to
be somebody else. Posts are short, have a channel by topic, and may reply to another one; a name
with an @ before it puts the post into that name's inbox.
"""

import hashlib
import re
import secrets
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Select, func, select

from slipstream.evaluation.errors import SlipstreamError
from slipstream.evaluation.plain_text import visible
from slipstream.evaluation.redaction import redact

from .database import Database
from .queries import TABLES, insert_or_ignore

MAX_TEXT = 2000
_POSTS, _MENTIONS = TABLES["posts"], TABLES["mentions"]
_CHANNEL = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")
_AUTHOR = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,63}")
_MENTION = re.compile(r"(?<![\w@])@([A-Za-z0-9][A-Za-z0-9._:-]{0,63})")
_MAX_MENTIONS = 16
_LATEST = select(func.max(_POSTS.c.posted_at))
_TICK_S = 1e-4


@dataclass(frozen=True)
class Post:
    """Something that somebody said.

    Attributes:
        posted_at: by the database's clock, seconds since the epoch.
        mentions: names with an @ in the text.
    """

    id: str
    channel: str
    author: str
    text: str
    reply_to: str | None
    posted_at: float
    mentions: tuple[str, ...] = ()


class Board:
    """The board as one author sees it.

    Args:
        author: stamped on every post.

    Raises:
        SlipstreamError: no possible name.
    """

    def __init__(self, database: Database, author: str) -> None:
        if not _AUTHOR.fullmatch(author):
            raise SlipstreamError(f"author {author!r}: letters, digits and . _ : - only, up to 64")
        self._database, self.author = database, author

    def post(
        self,
        text: str,
        *,
        channel: str = "general",
        reply_to: str | None = None,
        occasion: str = "",
    ) -> Post:
        """Say something.

        Args:
            text: at most `MAX_TEXT` characters; control characters are left out.
            channel: a topic, in lower case with hyphens.
            reply_to: the id of another post.
            occasion: what it is about; one author's second post on it is the first one again.

        Raises:
            SlipstreamError: empty or too long, no possible channel, no such post to reply to.
        """
        said = redact(visible(text)).strip()
        if not said or len(said) > MAX_TEXT:
            raise SlipstreamError(
                f"a post of {len(said)} characters: write between 1 and {MAX_TEXT}"
            )
        if not _CHANNEL.fullmatch(channel):
            raise SlipstreamError(f"channel {channel!r}: lower-case letters, digits and - only")
        mentions = tuple(dict.fromkeys(m.rstrip(".:-") for m in _MENTION.findall(said)))
        about = f"{self.author}|{occasion}" if occasion else secrets.token_hex(16)
        key = f"p{hashlib.sha256(about.encode()).hexdigest()[:12]}"

        def work(connection: Connection) -> float:
            if reply_to is not None and connection.scalar(_exists(reply_to)) is None:
                raise SlipstreamError(f"unknown post {reply_to!r}; `slipstream board` lists them")
            clock = connection.scalar(select(self._database.now)) or 0.0
            latest = connection.scalar(_LATEST) or 0.0
            now = max(clock, latest + _TICK_S)  # two posts in a millisecond have an order, too
            row: dict[str, Any] = {
                "id": key,
                "channel": channel,
                "author": self.author,
                "text": said,
            }
            row |= {"reply_to": reply_to, "posted_at": now}
            connection.execute(insert_or_ignore(self._database.dialect, _POSTS), row)
            for name in mentions[:_MAX_MENTIONS]:
                mention = {"post": key, "name": name, "posted_at": now}
                connection.execute(insert_or_ignore(self._database.dialect, _MENTIONS), mention)
            return now

        posted_at = self._database.write(work)
        return Post(key, channel, self.author, said, reply_to, posted_at, mentions[:_MAX_MENTIONS])

    def inbox(self, *, since: float = 0.0, limit: int = 50) -> list[Post]:
        """Return posts that mention this author or reply to one of theirs, newest first."""
        mentioned = select(_MENTIONS.c.post).where(_MENTIONS.c.name == self.author)
        mentioned = mentioned.where(_MENTIONS.c.posted_at > since)
        mentioned = mentioned.order_by(_MENTIONS.c.posted_at.desc()).limit(limit)
        own = select(_POSTS.c.id).where(_POSTS.c.author == self.author).scalar_subquery()
        wanted = _POSTS.c.id.in_(mentioned.scalar_subquery()) | _POSTS.c.reply_to.in_(own)
        query = select(_POSTS).where(wanted, _POSTS.c.posted_at > since)
        return self._read(query.order_by(_POSTS.c.posted_at.desc(), _POSTS.c.id).limit(limit))

    def posts(
        self, *, channel: str | None = None, since: float = 0.0, limit: int = 50
    ) -> list[Post]:
        """Return posts, newest first."""
        query = select(_POSTS).where(_POSTS.c.posted_at > since)
        if channel is not None:
            query = query.where(_POSTS.c.channel == channel)
        return self._read(query.order_by(_POSTS.c.posted_at.desc(), _POSTS.c.id).limit(limit))

    def thread(self, post: str) -> list[Post]:
        """Return a post and all that replies to it, oldest first."""
        line = select(_POSTS.c.id).where(_POSTS.c.id == post).cte("thread", recursive=True)
        line = line.union(select(_POSTS.c.id).where(_POSTS.c.reply_to == line.c.id))
        query = select(_POSTS).where(_POSTS.c.id.in_(select(line.c.id)))
        return self._read(query.order_by(_POSTS.c.posted_at, _POSTS.c.id))

    def _read(self, query: Select[Any]) -> list[Post]:
        rows = self._database.read(lambda connection: connection.execute(query).mappings().all())
        return [_post(dict(row)) for row in rows]


def _post(row: dict[str, Any]) -> Post:
    mentions = dict.fromkeys(m.rstrip(".:-") for m in _MENTION.findall(row["text"]))
    return Post(**row, mentions=tuple(mentions)[:_MAX_MENTIONS])


def _exists(post: str) -> Select[Any]:
    return select(_POSTS.c.id).where(_POSTS.c.id == post)
