"""The server as clients see it: a real model behind real HTTP."""

import asyncio
import json
import math
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import torch
from langchain_openai import ChatOpenAI
from openai import APIError, APIStatusError, InternalServerError, OpenAI
from transformers import AutoTokenizer

from slipstream.kernels.engine.engine import Engine, load
from slipstream.kernels.levers import SEED_SETTINGS
from slipstream.kernels.variants import Tree, VariantStore, seed_tree
from slipstream.serving.launch import run_tree, serve_command
from slipstream.serving.running import RunningServer, free_port

SETTINGS = {**SEED_SETTINGS, "step": "native", "weights": "int4-g32", "head": "int8"}
PROMPT = "The capital of France is"
NUM_TOKENS = 24


def start(folder: Path, model: Path, **levers: str) -> RunningServer:
    tree = seed_tree({**SETTINGS, **levers})
    where = VariantStore(folder / "variants").add(tree)
    return run_tree(tree, where, model, folder / "log", name="served", max_context=2048)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("served")


@pytest.fixture(scope="module")
def server(folder: Path, smollm2: Path) -> Iterator[RunningServer]:
    with start(folder, smollm2) as running:
        yield running


@pytest.fixture(scope="module")
def engine(folder: Path, smollm2: Path) -> Engine:
    """The same engine, without a server."""
    return load(VariantStore(folder / "variants").add(seed_tree(SETTINGS)), smollm2, 2048)


@pytest.fixture(scope="module")
def tokenizer(smollm2: Path) -> Any:
    return AutoTokenizer.from_pretrained(smollm2)


@pytest.fixture
def client(server: RunningServer) -> OpenAI:
    return OpenAI(base_url=server.url, api_key="none", max_retries=0)


def complete(client: OpenAI, **fields: Any) -> Any:
    extra = {"ignore_eos": True, "return_token_ids": True, **fields.pop("extra", {})}
    known = {"model": "served", "prompt": PROMPT, "temperature": 0.0, "max_tokens": NUM_TOKENS}
    return client.completions.create(**{**known, **fields}, extra_body=extra)


def test_tokens_are_the_engine_s_own_whole_and_streamed(
    client: OpenAI, engine: Engine, tokenizer: Any
) -> None:
    prompt = tokenizer.encode(PROMPT)
    expected = engine.generate(prompt, NUM_TOKENS)
    whole = complete(client)
    assert whole.choices[0].token_ids == expected
    assert whole.choices[0].prompt_token_ids == prompt
    assert whole.choices[0].text == tokenizer.decode(expected)
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (len(prompt), NUM_TOKENS)

    chunks = list(complete(client, stream=True, stream_options={"include_usage": True}))
    assert [t for chunk in chunks for choice in chunk.choices for t in choice.token_ids] == expected
    pieces = [choice for chunk in chunks for choice in chunk.choices]
    assert "".join(piece.text for piece in pieces) == whole.choices[0].text
    assert [piece.finish_reason for piece in pieces] == [None] * (len(pieces) - 1) + ["length"]
    assert len(pieces) >= 2
    assert chunks[-1].usage.completion_tokens == NUM_TOKENS


def test_integer_prompts_are_taken_as_they_are(client: OpenAI, tokenizer: Any) -> None:
    prompt = tokenizer.encode(PROMPT)
    many = complete(client, prompt=[prompt, prompt[:2]], extra={"add_special_tokens": False})
    assert [choice.index for choice in many.choices] == [0, 1]
    assert many.choices[0].token_ids == complete(client).choices[0].token_ids
    assert many.choices[1].token_ids == complete(client, prompt=prompt[:2]).choices[0].token_ids


def test_drafted_answers_are_the_same(
    client: OpenAI, smollm2: Path, tmp_path: Path, tokenizer: Any
) -> None:
    """An engine that hands over several tokens at once, more than a turn has."""
    prompt = tokenizer.encode("one two three one two three one two three one two")
    with start(tmp_path, smollm2, draft="lookup-7") as other:
        drafted = complete(OpenAI(base_url=other.url, api_key="none"), prompt=prompt)
    plain = complete(client, prompt=prompt)
    assert drafted.choices[0].token_ids == plain.choices[0].token_ids


def test_chat_ends_where_the_model_ends(client: OpenAI, tokenizer: Any, engine: Engine) -> None:
    turns = [{"role": "user", "content": "Say hello."}]
    whole = client.chat.completions.create(model="served", messages=turns, temperature=0.0)  # type: ignore[arg-type]
    prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    answer = engine.generate(prompt, whole.usage.completion_tokens)
    assert answer[-1] == tokenizer.eos_token_id
    assert whole.choices[0].finish_reason == "stop"
    assert whole.choices[0].message.content == tokenizer.decode(answer[:-1])
    assert whole.usage.prompt_tokens == len(prompt)
    stream = client.chat.completions.create(
        model="served",
        messages=turns,
        temperature=0.0,
        stream=True,  # type: ignore[arg-type]
    )
    deltas = [chunk.choices[0].delta for chunk in stream]
    assert deltas[0].role == "assistant"
    assert "".join(delta.content for delta in deltas) == whole.choices[0].message.content


def test_langchain_works_against_it(server: RunningServer, client: OpenAI) -> None:
    model = ChatOpenAI(
        model="served", base_url=server.url, api_key="none", temperature=0, max_completion_tokens=20
    )  # type: ignore[call-arg, arg-type]
    asked = [{"role": "user", "content": "Name a colour."}]
    same = client.chat.completions.create(
        model="served",
        messages=asked,
        temperature=0,
        max_tokens=20,  # type: ignore[arg-type]
    )
    assert model.invoke(asked).content == same.choices[0].message.content
    assert (
        "".join(str(piece.content) for piece in model.stream(asked)) == model.invoke(asked).content
    )


def test_plain_http_gets_events(server: RunningServer) -> None:
    body = {"model": "served", "prompt": PROMPT, "max_tokens": 5, "temperature": 0, "stream": True}
    with httpx.stream("POST", f"{server.url}/completions", json=body, timeout=60) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in answer.iter_lines() if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    assert json.loads(lines[0].removeprefix("data: "))["object"] == "text_completion"


def test_stop_strings_end_an_answer_and_are_no_part_of_it(client: OpenAI) -> None:
    text = complete(client, max_tokens=40).choices[0].text
    for stop in (text[7:12], text[11:13], text[20:]):
        whole = complete(client, max_tokens=40, stop=["never said", stop]).choices[0]
        assert whole.text == text[: text.index(stop)]
        assert whole.finish_reason == "stop"
        stream = complete(client, max_tokens=40, stop=stop, stream=True)
        assert "".join(chunk.choices[0].text for chunk in stream) == whole.text


def test_log_probabilities_are_the_engine_s(client: OpenAI, engine: Engine, tokenizer: Any) -> None:
    prompt = tokenizer.encode(PROMPT)
    found = complete(client, max_tokens=2, logprobs=3, extra={"prompt_logprobs": 2}).choices[0]
    rows = [engine.begin(prompt[:1]).log_softmax(-1)]
    for token in [*prompt[1:], *found.token_ids[:1]]:
        rows.append(engine.reveal(token).log_softmax(-1))
    assert found.prompt_logprobs[0] is None
    for row, token, told in zip(rows, prompt[1:], found.prompt_logprobs[1:], strict=False):
        own = told[str(token)]
        assert own["logprob"] == pytest.approx(float(row[token]), abs=1e-4)
        assert own["rank"] == int((row > row[token]).sum()) + 1
        best = told[str(int(row.argmax()))]
        assert best["rank"] == 1
        assert best["logprob"] == pytest.approx(float(row.max()), abs=1e-4)
        assert len(told) in (2, 3)
    for row, token, own, top in zip(
        rows[len(prompt) - 1 :],
        found.token_ids,
        found.logprobs.token_logprobs,
        found.logprobs.top_logprobs,
        strict=True,
    ):
        assert own == pytest.approx(float(row[token]), abs=1e-4)
        assert max(top.values()) == own
        assert len(top) == 3
    for size in (1, 16, 17, 40):
        extra = {"prompt_logprobs": 0}
        only = complete(client, prompt=[*range(1, size + 1)], max_tokens=0, extra=extra).choices[0]
        assert len(only.prompt_logprobs) == size
        assert (only.text, only.finish_reason) == ("", "length")

    chat = client.chat.completions.create(
        model="served",
        messages=[{"role": "user", "content": "Hi"}],
        max_tokens=3,
        temperature=0.0,
        logprobs=True,
        top_logprobs=2,
    )
    entries = chat.choices[0].logprobs.content  # type: ignore[union-attr]
    assert len(entries) == 3  # type: ignore[arg-type]
    for entry in entries:  # type: ignore[union-attr]
        assert entry.logprob == entry.top_logprobs[0].logprob
        assert bytes(entry.bytes).decode() == entry.token  # type: ignore[arg-type]


def test_streamed_log_probabilities_are_those_of_the_whole(client: OpenAI) -> None:
    """Offsets too, though text is held back for a stop string that doesn't come."""
    fields: dict[str, Any] = {"max_tokens": 12, "logprobs": 1, "stop": ["Paris is a"]}
    whole = complete(client, **fields).choices[0].logprobs
    parts = [chunk.choices[0].logprobs for chunk in complete(client, stream=True, **fields)]
    for name in ("tokens", "token_logprobs", "text_offset"):
        assert [x for part in parts if part for x in getattr(part, name)] == getattr(whole, name)


def test_fields_without_effect_and_nulls_are_taken(client: OpenAI, server: RunningServer) -> None:
    body = {
        "model": "served", "prompt": PROMPT, "max_tokens": 4, "temperature": 0, "top_p": None,
        "repetition_penalty": 1.0, "min_p": 0, "min_tokens": 0, "echo": None, "stream": None,
        "return_token_ids": True, "ignore_eos": True,
    }  # fmt: skip
    answer = httpx.post(f"{server.url}/completions", json=body, timeout=60).json()
    expected = complete(client, max_tokens=4).choices[0].token_ids
    assert answer["choices"][0]["token_ids"] == expected


def test_a_reader_that_stalls_holds_nobody_up(server: RunningServer, client: OpenAI) -> None:
    body = {
        "model": "served", "prompt": PROMPT, "max_tokens": 1500, "temperature": 0,
        "ignore_eos": True, "stream": True, "logprobs": 20,
    }  # fmt: skip
    text = json.dumps(body)
    with socket.create_connection(("127.0.0.1", urlsplit(server.url).port or 0)) as stalled:
        stalled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        stalled.sendall(f"{head}Content-Length: {len(text)}\r\n\r\n{text}".encode())
        assert stalled.recv(100)
        assert complete(client, max_tokens=3, timeout=120).choices[0].token_ids


@pytest.fixture
def other(smollm2: Path, tmp_path: Path) -> Callable[[str, str], RunningServer]:
    """A server whose engine's source was changed."""

    def start_other(old: str, new: str) -> RunningServer:
        tree = seed_tree(SETTINGS)
        source = tree.files["engine/engine.py"].decode()
        assert old in source
        changed = {**tree.files, "engine/engine.py": source.replace(old, new).encode()}
        where = VariantStore(tmp_path / "variants").add(Tree(changed))
        port = free_port()
        options = {"port": str(port), "name": "served", "max-context": "2048"}
        command = serve_command(tree, where, smollm2, options)
        return RunningServer(command, port, tmp_path / "log")

    return start_other


def test_an_engine_that_fails_is_heard_of(other: Callable[[str, str], RunningServer]) -> None:
    """Whole and halfway through a stream; who comes next is served."""
    going_on = "            left -= len(tokens)\n\n    @torch"  # of `_plain`
    failing = "            if prompt[0] == 7:\n                raise RuntimeError('broken')\n"
    with other(going_on, failing + going_on) as server:
        client = OpenAI(base_url=server.url, api_key="none", max_retries=0)
        with pytest.raises(InternalServerError, match="RuntimeError: broken"):
            complete(client, prompt=[7, 8, 9], max_tokens=60)
        with pytest.raises(APIError, match="RuntimeError: broken"):
            list(complete(client, prompt=[7, 8, 9], max_tokens=60, stream=True))
        assert len(complete(client, max_tokens=60).choices[0].token_ids) == 60


def test_a_tree_from_before_streams_is_served_too(
    other: Callable[[str, str], RunningServer], client: OpenAI
) -> None:
    chat: Any = {"messages": [{"role": "user", "content": "Say hello."}], "temperature": 0}
    with other("stream(", "old_stream(") as server:
        before = OpenAI(base_url=server.url, api_key="none")
        assert complete(before).choices[0].token_ids == complete(client).choices[0].token_ids
        answers = [c.chat.completions.create(model="served", **chat) for c in (before, client)]
    first, second = (answer.choices[0] for answer in answers)
    assert (first.finish_reason, first.message.content) == ("stop", second.message.content)


def test_sampling_is_drawn_from_the_softmax(client: OpenAI, engine: Engine, tokenizer: Any) -> None:
    def drawn(**fields: Any) -> list[int]:
        tokens: list[int] = complete(client, **{"temperature": 1.0, **fields}).choices[0].token_ids
        return tokens

    greedy = complete(client).choices[0].token_ids
    assert drawn(seed=1) == drawn(seed=1)
    assert len({tuple(drawn(seed=seed, max_tokens=8)) for seed in range(5)}) == 5
    assert drawn(extra={"top_k": 1}) == greedy
    assert drawn(top_p=1e-6) == greedy
    # One token, often: as frequent as the softmax of the three likeliest says.
    row = engine.begin(tokenizer.encode(PROMPT))
    values, tokens = (row / 0.7).topk(3)
    expected = dict(zip(tokens.tolist(), values.softmax(-1).tolist(), strict=True))
    count = 300
    seen = [
        drawn(seed=seed, max_tokens=1, temperature=0.7, extra={"top_k": 3})[0]
        for seed in range(count)
    ]
    for token, share in expected.items():
        spread = math.sqrt(share * (1 - share) / count)
        assert abs(seen.count(token) / count - share) < 4 * spread
    assert set(seen) <= set(expected)


@pytest.mark.parametrize(
    ("fields", "status", "param", "message"),
    [
        ({"model": "gpt-4"}, 404, "model", "`gpt-4` does not exist: this server has `served`"),
        ({"prompt": [10**9]}, 400, "prompt", "token 1000000000 is not in the vocabulary of 49152"),
        ({"prompt": []}, 400, "prompt", "0 of them; 1 to 128 are answered"),
        ({"prompt": ""}, 400, "prompt", "no tokens"),
        ({"max_tokens": 5000}, 400, "prompt", "maximum context length is 2048"),
        ({"max_tokens": -1}, 400, "max_tokens", "greater than or equal to 0"),
        ({"temperature": 3}, 400, "temperature", "less than or equal to 2"),
        ({"n": 2}, 400, "n", "one answer"),
        ({"prompt": "x" * 200_000}, 400, "prompt", "can't be 2048 tokens"),
        ({"extra": {"repetition_penalty": 1.2}}, 400, "repetition_penalty", "but for 1"),
        ({"echo": True}, 400, "echo", "not supported"),
        ({"stop": ["a", ""]}, 400, "stop", "none of them empty"),
        ({"extra": {"top_q": 1}}, 400, "top_q", "Unrecognized request argument"),
    ],
)
def test_wrong_fields_get_openai_s_error(
    fields: dict[str, Any], status: int, param: str, message: str, client: OpenAI
) -> None:
    with pytest.raises(APIStatusError) as caught:
        complete(client, **fields)
    assert caught.value.status_code == status
    error: Any = caught.value.body
    assert error["param"] == param
    assert message in error["message"]
    assert error["type"] == "invalid_request_error"


def test_what_is_no_request_gets_the_same_shape(server: RunningServer) -> None:
    for answer, status in (
        (httpx.get(f"{server.url}/nothing"), 404),
        (httpx.get(f"{server.url}/completions"), 405),
        (httpx.post(f"{server.url}/completions", content=b"{"), 400),
        (httpx.post(f"{server.url}/chat/completions", json={"model": "served"}), 400),
    ):
        assert answer.status_code == status
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


@pytest.mark.timed
@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_hangs_up_frees_the_engine(
    stream: bool, server: RunningServer, client: OpenAI
) -> None:
    body = {"model": "served", "prompt": PROMPT, "max_tokens": 2000, "ignore_eos": True}
    begun = time.monotonic()
    if stream:
        with httpx.stream(
            "POST", f"{server.url}/completions", json={**body, "temperature": 0, "stream": True}
        ) as answer:
            next(answer.iter_bytes())
    else:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{server.url}/completions", json={**body, "temperature": 0}, timeout=0.5)
    complete(client, max_tokens=2)
    freed_s = time.monotonic() - begun
    begun = time.monotonic()
    complete(client, max_tokens=1000)
    assert freed_s < 0.5 + (time.monotonic() - begun) / 2


def test_whoever_came_first_is_served_first(server: RunningServer) -> None:
    order: list[int] = []

    async def ask(http: httpx.AsyncClient, number: int) -> None:
        body = {"model": "served", "prompt": PROMPT, "max_tokens": 60, "temperature": 0}
        answer = await http.post(f"{server.url}/completions", json={**body, "ignore_eos": True})
        assert answer.status_code == 200
        order.append(number)

    async def all_of_them() -> None:
        async with httpx.AsyncClient(timeout=120) as http:
            tasks = []
            for number in range(6):
                tasks.append(asyncio.create_task(ask(http, number)))
                await asyncio.sleep(0.05)
            tasks[3].cancel()  # whoever leaves the queue holds nobody up
            await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(all_of_them())
    assert order == [0, 1, 2, 4, 5]


def test_many_at_once_get_their_own_answers(client: OpenAI) -> None:
    prompts = [f"{number}, {number + 1}, {number + 2}," for number in range(8)]
    alone = [complete(client, prompt=prompt).choices[0].token_ids for prompt in prompts]
    together: dict[int, list[int]] = {}

    def ask(number: int) -> None:
        together[number] = complete(client, prompt=prompts[number]).choices[0].token_ids

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [together[number] for number in range(8)] == alone


def test_streaming_leaves_no_trace_in_what_comes_after(engine: Engine, tokenizer: Any) -> None:
    """An answer given up in the middle, in the engine itself."""
    prompt = tokenizer.encode(PROMPT)
    expected = engine.generate(prompt, 12)
    source = engine.stream(prompt, 500, 8)
    assert next(source) == expected[:1]
    assert next(source) == expected[1:9]
    source.close()  # type: ignore[attr-defined]
    assert not torch.is_inference_mode_enabled()
    assert engine.generate(prompt, 12) == expected
