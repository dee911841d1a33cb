"""Text that grows token by token is the text of all tokens, whatever the pieces."""

import random
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from slipstream.serving.server.text import TextStream

TEXTS = (
    "Plain words, and a line\nbreak.",
    "naïve café – “quotes”, Ελληνικά, 日本語のテキスト",
    "emoji 👩‍👩‍👧 🇫🇷 and 𝔘𝔫𝔦𝔠𝔬𝔡𝔢",
    "    indented\n\n\tcode()  ",
)


@pytest.fixture(scope="module")
def tokenizer(smollm2: Path) -> Any:
    return AutoTokenizer.from_pretrained(smollm2)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("seed", range(3))
def test_pieces_add_up(text: str, seed: int, tokenizer: Any) -> None:
    tokens = tokenizer.encode(text, add_special_tokens=False)
    stream, draw, told, at = TextStream(tokenizer), random.Random(seed), "", 0
    while at < len(tokens):
        size = draw.randint(1, 3) if seed else 1
        piece = stream.push(tokens[at : at + size])
        assert "\ufffd" not in piece
        told, at = told + piece, at + size
    assert told + stream.finish() == text


@pytest.mark.parametrize("text", TEXTS)
def test_nothing_of_a_stop_string_is_told(text: str, tokenizer: Any) -> None:
    tokens = tokenizer.encode(text, add_special_tokens=False)
    for start in range(1, len(text) - 3, 3):
        stop = text[start : start + 3]
        stream, told = TextStream(tokenizer, ["not there at all", stop]), ""
        for token in tokens:
            told += stream.push([token])
            if stream.stopped:
                break
        else:
            told += stream.finish()
        assert stream.stopped
        assert told == text[: text.index(stop)]


def test_half_a_stop_string_is_told_in_the_end(tokenizer: Any) -> None:
    tokens = tokenizer.encode("one two", add_special_tokens=False)
    stream = TextStream(tokenizer, ["two three"])
    told = stream.push(tokens)
    assert told == "one "
    assert told + stream.finish() == "one two"
    assert not stream.stopped


def test_broken_characters_are_told_after_all(tokenizer: Any) -> None:
    half = tokenizer.encode("🦀", add_special_tokens=False)[:-1]
    stream = TextStream(tokenizer)
    assert stream.push(half) == ""
    assert "\ufffd" in stream.finish()
