"""Pictures and sounds: an exported Gemma 4 answers as transformers' own model does."""

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from by_manifest import run_by_manifest
from openai import BadRequestError, OpenAI
from tiny_senses import make_checkpoint, picture, png_url, sound, wav
from transformers import AutoTokenizer, Gemma4ForConditionalGeneration

from slipstream.evaluation.challenge import parse_challenge
from slipstream.kernels.levers import SEED_SETTINGS
from slipstream.kernels.variants import seed_tree
from slipstream.serving.export import export
from slipstream.serving.running import RunningServer
from slipstream.serving.server.fields import Message
from slipstream.serving.server.media import read_conversation
from slipstream.serving.server.senses import Senses

NUM_TOKENS = 16
RULES = """
name = "senses"
title = "a Gemma 4 that sees and hears"
model = "path:{model}"
device = "cpu"
"""
TEXT = {"type": "text", "text": "what is this?"}


def image_part(seed: int, size: tuple[int, int] = (60, 40)) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": png_url(picture(seed, size))}}


def audio_part(seed: int, seconds: float = 1.0) -> dict[str, Any]:
    return {"type": "input_audio", "input_audio": {"data": wav(sound(seed, seconds)),
                                                   "format": "wav"}}  # fmt: skip


CONTENTS = {
    "picture": [image_part(0), TEXT],
    "another picture": [image_part(1), TEXT],
    "tall picture after text": [TEXT, image_part(2, (30, 90))],
    "sound": [audio_part(0), TEXT],
    "short sound": [TEXT, audio_part(1, 0.3)],
    "two pictures, two sounds": [
        image_part(3), audio_part(2, 0.7), TEXT, image_part(4, (90, 90)), audio_part(3, 1.3)
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("senses"))


@pytest.fixture(scope="module")
def server(
    checkpoint: Path, python: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("exported")
    rules = parse_challenge(RULES.format(model=checkpoint), source="senses")
    tree = seed_tree({**SEED_SETTINGS, "dtype": "float32"})
    export(tree, rules, checkpoint, folder / "submission", "# a story\n", lambda _: None)
    with run_by_manifest(folder / "submission", python, folder) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: RunningServer) -> OpenAI:
    return OpenAI(base_url=server.url, api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def reference(checkpoint: Path) -> Any:
    return Gemma4ForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32).eval()


def ask(client: OpenAI, content: list[dict[str, Any]], **fields: Any) -> Any:
    messages: Any = [{"role": "user", "content": content}]
    known = {"model": "senses", "temperature": 0.0, "max_tokens": NUM_TOKENS}
    extra = {"ignore_eos": True, "return_token_ids": True, **fields.pop("extra", {})}
    return client.chat.completions.create(
        messages=messages, extra_body=extra, **{**known, **fields}
    )


def expected(checkpoint: Path, reference: Any, content: list[dict[str, Any]]) -> list[int]:
    """What transformers' model answers, which counts the soft tokens itself and merges them."""
    senses = Senses(checkpoint, AutoTokenizer.from_pretrained(checkpoint), "cpu")
    perceived = senses.read(read_conversation([Message(role="user", content=content)]))
    prompt = torch.tensor([perceived.tokens])
    given = {**(perceived.pixels or {}), **(perceived.waves or {})}
    answer = reference.generate(
        input_ids=prompt,
        attention_mask=torch.ones_like(prompt),
        **given,
        do_sample=False,
        min_new_tokens=NUM_TOKENS,
        max_new_tokens=NUM_TOKENS,
        eos_token_id=None,
    )
    found: list[int] = answer[0, prompt.shape[1] :].tolist()
    return found


@pytest.mark.parametrize("name", CONTENTS)
def test_answers_are_those_of_transformers(
    name: str, client: OpenAI, checkpoint: Path, reference: Any
) -> None:
    tokens = expected(checkpoint, reference, CONTENTS[name])
    whole = ask(client, CONTENTS[name])
    assert whole.choices[0].token_ids == tokens
    chunks = ask(client, CONTENTS[name], stream=True)
    pieces = [choice for chunk in chunks for choice in chunk.choices]
    assert [token for piece in pieces for token in piece.token_ids] == tokens
    ranked = ask(client, CONTENTS[name], logprobs=True)  # through the door that tells logits
    assert ranked.choices[0].token_ids == tokens


def test_what_is_seen_matters(client: OpenAI) -> None:
    """Or the tests above would pass with a blind model."""
    told = [ask(client, CONTENTS[name]).choices[0].token_ids for name in CONTENTS]
    assert len({tuple(tokens) for tokens in told}) == len(told)


def test_text_is_answered_as_without_senses(client: OpenAI) -> None:
    parts = ask(client, [TEXT]).choices[0].token_ids
    messages: Any = [{"role": "user", "content": TEXT["text"]}]
    plain = client.chat.completions.create(
        model="senses", messages=messages, temperature=0.0, max_tokens=NUM_TOKENS,
        extra_body={"ignore_eos": True, "return_token_ids": True},
    )  # fmt: skip
    assert plain.choices[0].token_ids == parts


def test_vllm_s_audio_url_and_other_rates_are_heard(client: OpenAI) -> None:
    url = f"data:audio/wav;base64,{wav(sound(0))}"
    same = ask(client, [{"type": "audio_url", "audio_url": {"url": url}}, TEXT])
    assert same.choices[0].token_ids == ask(client, CONTENTS["sound"]).choices[0].token_ids
    low = sound(0)[::2]
    part = {"type": "input_audio", "input_audio": {"data": wav(low, 8000), "format": "wav"}}
    assert len(ask(client, [part, TEXT]).choices[0].token_ids) == NUM_TOKENS


@pytest.mark.parametrize(
    ("part", "told"),
    [
        ({"type": "image_url", "image_url": {"url": "http://127.0.0.1/x.png"}}, "fetches nothing"),
        ({"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}, "fetches nothing"),
        ({"type": "image_url", "image_url": {"url": "data:image/png;base64,!"}}, "no base64"),
        ({"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}, "no picture"),
        ({"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}, "no sound"),
        (audio_part(0, 31.0), "31.0 s; at most 30 s are heard"),
        ({"type": "image_url"}, "needs a field 'image_url'"),
        ({"type": "video_url", "video_url": {"url": "x"}}, "'video_url': use text, image_url"),
        ({"type": "text", "text": "a <|image|> of mine"}, "stands 2 times in the prompt, for 1"),
    ],
)
def test_what_cannot_be_read_is_said(client: OpenAI, part: dict[str, Any], told: str) -> None:
    with pytest.raises(BadRequestError, match=told.replace("|", r"\|")) as caught:
        ask(client, [image_part(0), part])
    assert caught.value.body["type"] == "invalid_request_error"  # type: ignore[index]


def test_a_picture_of_too_many_pixels_is_not_decoded(client: OpenAI) -> None:
    header = base64.b64decode(png_url(picture(0)).partition(",")[2])
    huge = header[:16] + (60_000).to_bytes(4, "big") * 2 + header[24:]
    url = f"data:image/png;base64,{base64.b64encode(huge).decode()}"
    with pytest.raises(BadRequestError, match="messages: image_url"):
        ask(client, [{"type": "image_url", "image_url": {"url": url}}])


def test_a_prompt_s_log_probabilities_are_refused(client: OpenAI) -> None:
    with pytest.raises(BadRequestError, match="prompt_logprobs: a prompt with pictures"):
        ask(client, CONTENTS["picture"], extra={"prompt_logprobs": 1})
