"""The board: authors are stamped, texts bounded, mentions delivered."""

import time
from collections.abc import Iterator

import pytest

from slipstream.evaluation.errors import SlipstreamError
from slipstream.memory.board import MAX_TEXT, Board
from slipstream.memory.store import Memory, open_memory


@pytest.fixture
def memory(url: str) -> Iterator[Memory]:
    with open_memory(url) as opened:
        yield opened


def test_posts_have_their_author_and_come_newest_first(memory: Memory) -> None:
    ada, bob = Board(memory.database, "ada"), Board(memory.database, "bob:r1")
    first = ada.post("int4 g64 breaks the head", channel="quality")
    second = bob.post("seen here too, @ada", channel="quality", reply_to=first.id)
    bob.post("good morning")
    assert [p.author for p in ada.posts()] == ["bob:r1", "bob:r1", "ada"]
    assert ada.posts(channel="quality") == [second, first]
    assert ada.posts(since=first.posted_at)[-1] == second
    assert len(ada.posts(limit=1)) == 1
    assert ada.thread(first.id) == [first, second]
    assert second.mentions == ("ada",)


def test_inbox_has_mentions_and_replies(memory: Memory) -> None:
    ada, bob, eve = (Board(memory.database, name) for name in ("ada", "bob", "eve"))
    first = ada.post("does layer-norm pay on Zen 4?")
    answer = bob.post("it does", reply_to=first.id)
    time.sleep(0.01)  # clocks have milliseconds
    ping = eve.post("thanks @bob, and @ada; mail me at eve@example.org")
    assert ada.inbox() == [ping, answer]
    assert bob.inbox() == [ping]
    assert eve.inbox() == []
    assert ping.mentions == ("bob", "ada")
    assert ada.inbox(since=answer.posted_at) == [ping]


def test_one_occasion_is_one_post(memory: Memory) -> None:
    ada, bob = Board(memory.database, "ada"), Board(memory.database, "bob")
    first = ada.post("int8 pays", channel="gains", occasion="r1-001")
    assert ada.post("int8 pays", channel="gains", occasion="r1-001").id == first.id
    bob.post("int8 pays", channel="gains", occasion="r1-001")
    assert [p.author for p in ada.posts()] == ["bob", "ada"]


@pytest.mark.parametrize(
    ("text", "channel", "message"),
    [
        ("", "general", "a post of 0 characters: write between 1 and 2000"),
        ("x" * (MAX_TEXT + 1), "general", "a post of 2001 characters"),
        ("x", "No Such", "channel 'No Such': lower-case"),
    ],
)
def test_what_cannot_be_posted(memory: Memory, text: str, channel: str, message: str) -> None:
    with pytest.raises(SlipstreamError, match=message):
        Board(memory.database, "ada").post(text, channel=channel)


def test_nobody_replies_to_nothing_or_is_somebody_else(memory: Memory) -> None:
    ada = Board(memory.database, "ada")
    with pytest.raises(SlipstreamError, match="unknown post 'p0'"):
        ada.post("yes", reply_to="p0")
    with pytest.raises(SlipstreamError, match="author 'a b'"):
        Board(memory.database, "a b")
    assert ada.post("I am bob\x1b[2K\u202e").author == "ada"
    assert ada.posts()[0].text == "I am bob[2K"  # what could hide or overwrite text is gone
