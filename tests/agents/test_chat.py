"""One call of a model: money first, then the wire, and every failure in one line."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from langchain_core.messages import AIMessageChunk, HumanMessage, SystemMessage
from langchain_core.messages.tool import ToolCallChunk
from model_server import Call, Cut, Fail, Garbage, ModelServer, Reply, Request, Say

from slipstream.agents.chat import Chat, TooLongError
from slipstream.agents.clients import Answer, answer_of, is_local
from slipstream.agents.coder_tools import Edit
from slipstream.agents.prices import Price, Usage, price_of
from slipstream.agents.session import Purse, Session
from slipstream.agents.specs import AgentSpecs, ModelSpec, parse_model, parse_models
from slipstream.agents.tools import schema_of
from slipstream.evaluation.errors import OutOfMoneyError, OutOfTimeError, SlipstreamError
from slipstream.memory.cassette import NoCassette, Recorder
from slipstream.memory.costs import Costs
from slipstream.memory.records import Run, RunState
from slipstream.memory.store import open_memory

TOOLS = [schema_of("edit", Edit)]
EDIT = Call("edit", {"path": "a.py", "old": "x", "new": "y"})


@pytest.fixture
def session(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Session]:
    monkeypatch.setattr("slipstream.agents.chat._FIRST_PAUSE_S", 0.01)
    monkeypatch.setenv("SLIPSTREAM_API_KEY", "sk-of-nobody-0123456789")
    with open_memory() as memory:
        memory.add_run(
            Run("r1", "c", {}, "m", "m", 1, RunState.RUNNING, 5, 5, 0.0, False, None, None, 1.0)
        )
        costs = Costs(memory.database)
        yield Session("r1", 1, costs, Purse("r1", costs), NoCassette(), lambda: 100.0)


def spec(server: ModelServer, wire: str) -> ModelSpec:
    return ModelSpec(wire, "m", server.url + ("/v1" if wire == "openai" else ""))


def ask(server: ModelServer, session: Session, wire: str = "openai", turn: int = 0) -> Answer:
    chat = Chat(spec(server, wire), "coder", session)
    messages = [SystemMessage("be brief"), HumanMessage("go")]
    return chat.ask(messages, TOOLS, occasion=f"r1-001 #{turn}", experiment="r1-001")


def in_turn(*replies: Reply) -> Callable[[Request], Reply]:
    left = list(replies)
    return lambda _: left.pop(0) if left else Say(calls=(EDIT,))


@pytest.mark.parametrize("wire", ["openai", "anthropic"])
def test_an_answer_with_its_cost(session: Session, wire: str) -> None:
    with ModelServer(lambda _: Say("here", (EDIT,), usage=(1000, 50))) as server:
        answer = ask(server, session, wire)
        assert answer.calls[0].arguments == EDIT.arguments
        assert (answer.malformed, answer.refused) == ("", False)
        (request,) = server.requests
        assert request.stream
        assert "max_tokens" in request.raw
    (cost,) = session.costs.of_run("r1")
    assert (cost.input_tokens, cost.output_tokens, cost.outcome) == (1000, 50, "ok")
    assert cost.usd == 0.0  # a server of one's own
    assert (cost.role, cost.experiment) == ("coder", "r1-001")


@pytest.mark.parametrize("wire", ["openai", "anthropic"])
@pytest.mark.parametrize(
    "fault",
    [Fail(429, retry_after=0.01), Fail(500), Fail(529), Cut(50), Garbage(), Fail(500, midway=True)],
    ids=["429", "500", "529", "cut", "garbage", "midway"],
)
def test_what_passes_is_tried_again(session: Session, wire: str, fault: Reply) -> None:
    with ModelServer(in_turn(fault, fault)) as server:
        assert ask(server, session, wire).calls
        assert len(server.requests) == 3
    assert [cost.outcome for cost in session.costs.of_run("r1")][-1] == "ok"


@pytest.mark.parametrize("wire", ["openai", "anthropic"])
@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (Fail(401), "the key was refused (401); check SLIPSTREAM_API_KEY"),
        (Fail(403), "not allowed with this key (403)"),
        (Fail(404), "unknown there (404)"),
        (Fail(400), "the request was refused (400)"),
        (Fail(429, code="insufficient_quota"), "out of credit"),
    ],
)
def test_what_does_not_pass_says_what_to_do(
    session: Session, wire: str, fault: Reply, said: str
) -> None:
    with ModelServer(lambda _: fault) as server:
        with pytest.raises(SlipstreamError) as caught:
            ask(server, session, wire)
        assert len(server.requests) == 1
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_it_gives_up_after_a_while(session: Session) -> None:
    with ModelServer(lambda _: Fail(500)) as server:
        with pytest.raises(SlipstreamError, match=r"the server fails \(500\)"):
            ask(server, session)
        assert len(server.requests) == 6


def test_retry_after_is_honoured(session: Session) -> None:
    with ModelServer(in_turn(Fail(429, retry_after=1.0))) as server:
        begun = time.monotonic()
        ask(server, session)
        assert time.monotonic() - begun >= 1.0
    with ModelServer(lambda _: Fail(429, retry_after=3600.0)) as server:
        with pytest.raises(OutOfTimeError, match="asks for 3600 s, the run has less left"):
            ask(server, session, turn=1)
        assert len(server.requests) == 1


def test_too_long_a_conversation_is_no_crash(session: Session) -> None:
    fault = Fail(400, message="prompt is too long: 300000 tokens > 200000 maximum")
    with ModelServer(lambda _: fault) as server, pytest.raises(TooLongError):
        ask(server, session, "anthropic")


@pytest.mark.parametrize(
    "text", ["the maximum context length is 8192 tokens", "exceeds the available context size"]
)
def test_compatible_servers_have_their_own_words_for_it(session: Session, text: str) -> None:
    with ModelServer(lambda _: Fail(400, message=text)) as server, pytest.raises(TooLongError):
        ask(server, session)


def test_what_a_model_dreams_up_can_be_written_down() -> None:
    arguments = json.dumps({"path": "a\ud800.py", "old": "x\0", "new": ["\ud83d\ude00"]})
    piece = ToolCallChunk(name="edit", args=arguments, id="1", index=0, type="tool_call_chunk")
    chunk = AIMessageChunk(
        "\ud83d text", tool_call_chunks=[piece], response_metadata={"finish_reason": "tool_calls"}
    )
    answer = answer_of(chunk)
    assert answer.text == "\ufffd text"
    assert answer.calls[0].arguments == {"path": "a\ufffd.py", "old": "x", "new": ["😀"]}


@pytest.mark.parametrize(
    ("url", "local"),
    [
        ("http://localhost:8000/v1", True),
        ("http://127.0.0.1/v1", True),
        ("http://192.168.1.5/v1", True),
        ("http://[::1]:8000/v1", True),
        ("http://gpu.local/v1", True),
        ("http://172.217.0.1/v1", False),
        ("http://10.example.com/v1", False),
        ("http://[2001:4860::8888]/v1", False),
        ("https://api.together.xyz/v1", False),
    ],
)
def test_only_what_is_nearby_is_free(url: str, local: bool) -> None:
    assert is_local(ModelSpec("openai", "m", url)) is local


def test_money_is_committed_before_the_call(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prices = tmp_path / "prices.toml"
    prices.write_text('["openai:m"]\ninput = 2.0\noutput = 8.0\n')
    monkeypatch.setenv("SLIPSTREAM_PRICES", str(prices))
    session.purse.limit = 0.10
    seen: list[float] = []

    def script(_: Request) -> Reply:
        seen.append(session.costs.usd("r1"))
        return Say(calls=(EDIT,), usage=(1000, 500))

    with ModelServer(script) as server:
        ask(server, session)
        actual = session.costs.usd("r1")
        assert actual == pytest.approx((1000 * 2 + 500 * 8) * 1e-6)
        assert actual < seen[0] <= 0.10
        session.purse.limit = actual + 1e-4
        with pytest.raises(OutOfMoneyError, match="budget"):
            ask(server, session, turn=1)
        assert len(server.requests) == 1


def test_without_a_price_dollars_cannot_be_held(session: Session) -> None:
    session.purse.limit = 1.0
    with pytest.raises(SlipstreamError, match="no price is known"):
        Chat(ModelSpec("openai", "some-new-model"), "planner", session)


def test_tape_answers_what_was_asked_before(session: Session, tmp_path: Path) -> None:
    with ModelServer(lambda _: Say(calls=(EDIT,))) as server:
        session.cassette = Recorder(tmp_path / "tape.jsonl")
        first = ask(server, session)
        session.cassette = Recorder(tmp_path / "tape.jsonl")  # after a crash
        assert ask(server, session) == first
        assert len(server.requests) == 1
    tape = (tmp_path / "tape.jsonl").read_text()
    assert "sk-of-nobody" not in tape
    assert json.loads(tape.splitlines()[0])["kind"] in ("seen", "text")


def test_prices() -> None:
    price = Price(input=3.0, output=15.0, read=0.3, write=3.75)
    usage = Usage(input=1_000_000, output=100_000, cached_read=500_000, cached_write=100_000)
    assert price.of(usage) == pytest.approx(0.4 * 3 + 0.5 * 0.3 + 0.1 * 3.75 + 0.1 * 15)
    assert price_of("anthropic:claude-haiku-4-5-20251001", local=False) == price_of(
        "anthropic:claude-haiku-4-5", local=False
    )
    assert price_of("openai:gpt-5-something-dear", local=False) is None
    assert price_of("openai:llama", local=True) == Price(input=0.0, output=0.0)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("gpt-5", "write one of"),
        ("google:gemini", "write one of"),
        ("openai:", "write one of"),
        ("openai:m@localhost", "comes a URL"),
        ("openai:a,openai:a", "comes twice"),
        ("openai:m@http://me:secret@host/v1", "more than an address"),
        ("openai:m@http://host/v1?key=1", "more than an address"),
    ],
)
def test_specs_say_what_they_want(text: str, said: str) -> None:
    with pytest.raises(SlipstreamError, match=said):
        parse_models(text)


def test_keys_come_from_the_environment_and_go_home_only(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "SLIPSTREAM_API_KEY", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(SlipstreamError, match="export ANTHROPIC_API_KEY="):
        AgentSpecs(planner="anthropic:claude-haiku-4-5").check()
    monkeypatch.setenv("OPENAI_API_KEY", "sk-openai")
    assert parse_model("openai:gpt-5").key() == "sk-openai"
    assert parse_model("openai:m@http://elsewhere/v1").key() == "none"
    with pytest.raises(SlipstreamError, match="export HF_TOKEN="):
        parse_model("openai:m@https://router.huggingface.co/v1").key()
    AgentSpecs(coder="cmd:claude -p").check()
    with pytest.raises(SlipstreamError, match="holds a key"):
        AgentSpecs(coder="cmd:agent --key sk-0123456789abcdefghij").check()
    with pytest.raises(SlipstreamError, match="after it comes a command"):
        AgentSpecs(coder="cmd:").check()
