"""Findings are found by their words, on both databases alike."""

from collections.abc import Iterator

import pytest
from memories import Teller, make_run

from slipstream.evaluation.acceptance import Verdict
from slipstream.evaluation.errors import SlipstreamError
from slipstream.memory.board import Board
from slipstream.memory.digest import digest
from slipstream.memory.search import search
from slipstream.memory.store import Memory, open_memory


@pytest.fixture
def memory(url: str) -> Iterator[Memory]:
    with open_memory(url) as opened:
        teller = Teller(opened)
        teller.tell("a", Verdict.KEPT, 0.2, lever="weights", value="int4-g32", mechanism="bytes")
        teller.tell(
            "b", Verdict.REJECTED, 0.1, lever="head", value="int4-g64", mechanism="PPL's too high"
        )
        other = Teller(opened, make_run("r2", family="gemma3_text", challenge="d"))
        other.tell("c", Verdict.REJECTED, -0.1, lever="head", value="int8", mechanism="no bytes")
        yield opened


def test_words_filters_and_order(memory: Memory) -> None:
    def found(words: str = "", **filters: object) -> list[str]:
        return [f"{h.lever}={h.value}" for h in search(memory.database, words, **filters)]  # type: ignore[arg-type]

    assert found("int4 head") == ["head=int4-g64"]
    assert sorted(found("int4")) == ["head=int4-g64", "weights=int4-g32"]
    assert found("int4-g32") == ["weights=int4-g32"]
    assert found("PPL's") == ["head=int4-g64"]
    assert found("INT8") == ["head=int8"]
    assert found("nothing-like-it") == []
    assert found(lever="head") == ["head=int4-g64", "head=int8"]
    assert found("bytes", family="llama") == ["weights=int4-g32"]
    assert found(challenge="d") == ["head=int8"]
    assert found(verdict="kept") == ["weights=int4-g32"]
    assert found(machine="elsewhere") == []
    assert found(limit=1) == ["head=int4-g64"]


@pytest.mark.parametrize(
    ("words", "hits"),
    [
        ('"', 3),  # nothing to search for: everything
        ("&|", 3),
        ("bytes OR PPL", 0),
        ("head*", 2),
        ("NEAR(", 0),
        ("'; DROP TABLE runs", 0),
        ("lever:head", 0),
        ("-bytes", 2),
    ],
)
def test_no_word_is_syntax(memory: Memory, words: str, hits: int) -> None:
    assert len(search(memory.database, words)) == hits


def test_too_many_words(memory: Memory) -> None:
    with pytest.raises(SlipstreamError, match="17 words"):
        search(memory.database, "w " * 17)


def test_digest_says_what_happened_since(memory: Memory) -> None:
    Board(memory.database, "ada").post("hello")
    everything = digest(memory, 0.0)
    assert everything.verdicts == {"kept": 1, "rejected": 2}
    assert [hit.value for hit in everything.gains] == ["int4-g32"]
    assert len(everything.findings) == 3
    assert [post.text for post in everything.posts] == ["hello"]
    nothing = digest(memory, everything.posts[0].posted_at + 1)
    assert (nothing.verdicts, nothing.gains, nothing.posts) == ({}, [], [])
