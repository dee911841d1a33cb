"""Keys are blacked out, words are not."""

import pytest

from slipstream.evaluation.redaction import redact, redact_all


@pytest.mark.parametrize(
    "key",
    [
        "sk-ant-api03-abcdefghijklmnop",
        "sk-proj-0123456789abcdef0123",
        "hf_abcdefghijklmnopqrst",
        "ghp_0123456789abcdefghijklmn",
        "AKIA0123456789ABCDEF",
    ],
)
def test_what_looks_like_a_key(key: str) -> None:
    assert redact(f"Incorrect API key provided: {key}.") == (
        "Incorrect API key provided: [redacted]."
    )


def test_what_is_a_key_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_SERVICE_TOKEN", "plain-words-as-a-key")
    monkeypatch.setenv("SHORT_KEY", "abc")
    assert redact("so plain-words-as-a-key it is, abc") == "so [redacted] it is, abc"
    found = redact_all({"a": ["plain-words-as-a-key", 1], "b": {"c": "plain-words-as-a-key!"}})
    assert found == {"a": ["[redacted]", 1], "b": {"c": "[redacted]!"}}


def test_code_stays_as_it_is() -> None:
    text = "mask-out-padding-positions-early; task-specific; disk-cache, tokens=[1, 2]"
    assert redact(text) == text
