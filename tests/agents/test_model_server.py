"""The scripted server speaks both wires to the providers' own clients."""

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anthropic
import openai
import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from model_server import BadArguments, Call, Message, ModelServer, Refuse, Reply, Request, Say
from pydantic import BaseModel, ValidationError
from real_clients import WAYS, WIRES, ask, make_client


class Propose(BaseModel):
    """Propose a change of a lever."""

    lever: str
    gain: float


CALLS = (
    Call("Propose", {"lever": "weights – int8", "gain": 0.2}, "first"),
    Call("Propose", {"lever": "cache", "gain": 0.1}, "second"),
)
SDKS: dict[str, Any] = {"openai": openai, "anthropic": anthropic}
each_wire = pytest.mark.parametrize("wire", WIRES)
each_way = pytest.mark.parametrize("way", WAYS)


def in_turn(*replies: Reply) -> Any:
    """A script that gives one reply after the other."""
    left = iter(replies)
    return lambda request: next(left)


@each_wire
@each_way
def test_text_and_usage_arrive(wire: str, way: str) -> None:
    with ModelServer(lambda request: Say("Hello – Welt", usage=(7, 3))) as server:
        answer = ask(make_client(server, wire), way)
    assert answer.content == "Hello – Welt"
    assert answer.usage_metadata is not None
    assert (answer.usage_metadata["input_tokens"], answer.usage_metadata["output_tokens"]) == (7, 3)
    reasons = {answer.response_metadata.get(key) for key in ("finish_reason", "stop_reason")}
    assert reasons == {None, "stop" if wire == "openai" else "end_turn"}
    assert not server.errors


@each_wire
def test_a_stream_comes_in_several_pieces(wire: str) -> None:
    with ModelServer(lambda request: Say("one two three four five")) as server:
        texts = [chunk.text for chunk in make_client(server, wire).stream("Hi")]
    assert len([text for text in texts if text]) > 2


@each_wire
@each_way
def test_calls_arrive_beside_text(wire: str, way: str) -> None:
    with ModelServer(lambda request: Say("two ideas", CALLS)) as server:
        answer = ask(make_client(server, wire).bind_tools([Propose]), way)
    assert answer.text == "two ideas"
    assert [(c["name"], c["args"], c["id"]) for c in answer.tool_calls] == [
        (call.name, call.arguments, call.id) for call in CALLS
    ]
    assert server.requests[0].tools == ("Propose",)
    reasons = {answer.response_metadata.get(key) for key in ("finish_reason", "stop_reason")}
    assert reasons == {None, "tool_calls" if wire == "openai" else "tool_use"}


@each_wire
@each_way
def test_a_conversation_reads_the_same_on_both_wires(wire: str, way: str) -> None:
    with ModelServer(in_turn(Say("hm", CALLS), Say("done"))) as server:
        client = make_client(server, wire).bind_tools([Propose], tool_choice="any")
        begun = [SystemMessage("Be brief."), HumanMessage("Hi")]
        first = ask(client, way, begun)
        results = [ToolMessage(f"ran {call.id}", tool_call_id=call.id) for call in CALLS]
        ask(
            client, way, [*begun, first, *results, HumanMessage([{"type": "text", "text": "And?"}])]
        )
    assert server.requests[1].messages == (
        Message("system", "Be brief."),
        Message("user", "Hi"),
        Message("assistant", "hm", CALLS),
        Message("tool", "ran first", answers="first"),
        Message("tool", "ran second", answers="second"),
        Message("user", "And?"),
    )
    asked = server.requests[1]
    assert (asked.wire, asked.model, asked.stream) == (wire, "m", way == "stream")
    assert asked.tool_choice == ("required" if wire == "openai" else {"type": "any"})
    assert (asked.headers.get("x-api-key") or asked.headers["authorization"]).endswith("k")
    assert not server.errors


@each_wire
def test_system_blocks_are_one_message(wire: str) -> None:
    blocks: Any = [{"type": "text", "text": text} for text in ("Be brief.", "Be kind.")]
    with ModelServer(lambda request: Say("yes")) as server:
        ask(make_client(server, wire), "invoke", [SystemMessage(blocks), HumanMessage("Hi")])
    assert server.requests[0].messages[0] == Message("system", "Be brief.\nBe kind.")


def test_developers_speak_as_the_system() -> None:
    with ModelServer(lambda request: Say("yes")) as server:
        client = make_client(server, "openai", model="o4-mini")
        ask(client, "invoke", [SystemMessage("Be brief."), HumanMessage("Hi")])
    assert server.requests[0].raw["messages"][0]["role"] == "developer"
    assert server.requests[0].messages[0].role == "system"


@each_wire
@each_way
@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_structured_output(wire: str, way: str, method: Any) -> None:
    def script(request: Request) -> Reply:
        return Say(calls=CALLS[:1]) if request.tools else Say(json.dumps(CALLS[0].arguments))

    with ModelServer(script) as server:
        client = make_client(server, wire).with_structured_output(Propose, method=method)
        found = client.invoke("Hi") if way == "invoke" else list(client.stream("Hi"))[-1]
    assert found == Propose(**CALLS[0].arguments)
    assert not server.errors


@each_wire
@each_way
def test_a_refusal_has_its_own_place(wire: str, way: str) -> None:
    """Streamed from OpenAI, langchain drops it: an empty answer that ends with "stop" is left."""
    with ModelServer(lambda request: Refuse("No.")) as server:
        answer = ask(make_client(server, wire), way)
    if wire == "anthropic":
        assert answer.content == "No."
        assert answer.response_metadata["stop_reason"] == "refusal"
        assert answer.response_metadata["stop_details"]["type"] == "refusal"
    else:
        assert answer.content == ""
        assert answer.response_metadata["finish_reason"] == "stop"
        assert answer.additional_kwargs.get("refusal") == ("No." if way == "invoke" else None)


@each_wire
@each_way
def test_unreadable_arguments_are_an_invalid_call(wire: str, way: str) -> None:
    """In one piece, Anthropic's are no string but a value: langchain raises for any but objects."""
    with ModelServer(lambda request: BadArguments("Propose", '{"gain": lots}')) as server:
        client = make_client(server, wire).bind_tools([Propose])
        if (wire, way) == ("anthropic", "invoke"):
            with pytest.raises(ValidationError, match=r"tool_calls\.0\.args"):
                ask(client, way)
            return
        answer = ask(client, way)
    assert not answer.tool_calls
    [invalid] = answer.invalid_tool_calls
    assert (invalid["name"], invalid["args"]) == ("Propose", '{"gain": lots}')


@each_wire
def test_unfinished_arguments_are_completed_when_streamed(wire: str) -> None:
    """langchain reads streamed arguments as far as they go, and then they look like valid ones."""
    with ModelServer(lambda request: BadArguments("Propose", '{"lever": "wei')) as server:
        answer = ask(make_client(server, wire).bind_tools([Propose]), "stream")
    assert [call["args"] for call in answer.tool_calls] == [{"lever": "wei"}]
    assert not answer.invalid_tool_calls


@each_wire
def test_an_invalid_call_can_be_sent_back(wire: str) -> None:
    with ModelServer(in_turn(BadArguments("Propose", "{lots}"), Say("sorry"))) as server:
        client = make_client(server, wire).bind_tools([Propose])
        first = ask(client, "stream")
        result = ToolMessage("not JSON", tool_call_id=first.invalid_tool_calls[0]["id"] or "")
        ask(client, "stream", [HumanMessage("Hi"), first, result])
    [call] = server.requests[1].messages[1].calls
    assert call.arguments == ({"INVALID_JSON": "{lots}"} if wire == "openai" else {})
    assert not server.errors


@each_wire
@pytest.mark.parametrize(
    "last", [HumanMessage("Go on"), ToolMessage("ran something else", tool_call_id="call_b")]
)
def test_a_call_without_its_answer_is_rejected(wire: str, last: Any) -> None:
    asked = {"name": "Propose", "args": {}, "id": "call_a"}
    messages = [HumanMessage("Hi"), AIMessage("", tool_calls=[asked]), last]
    rejected = pytest.raises(SDKS[wire].BadRequestError, match="call_a")
    with ModelServer(lambda request: Say("never")) as server, rejected:
        ask(make_client(server, wire), "invoke", messages)
    assert len(server.errors) == 1
    assert not server.requests


def test_anthropic_rejects_what_is_empty() -> None:
    rejected = pytest.raises(anthropic.BadRequestError, match="non-empty content")
    with ModelServer(lambda request: Say("never")) as server, rejected:
        ask(make_client(server, "anthropic"), "invoke", "")


def test_models_are_listed_in_both_ways() -> None:
    with ModelServer(lambda request: Say(), models=("a", "b")) as server:
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="k") as client:
            assert [model.id for model in client.models.list()] == ["a", "b"]
        with anthropic.Anthropic(base_url=server.url, api_key="k") as other:
            assert [model.id for model in other.models.list()] == ["a", "b"]


@each_wire
def test_requests_may_come_at_once(wire: str) -> None:
    with ModelServer(lambda request: Say(request.messages[0].text)) as server:
        client = make_client(server, wire)
        with ThreadPoolExecutor(8) as pool:
            texts = list(pool.map(lambda number: client.invoke(str(number)).text, range(32)))
    assert texts == [str(number) for number in range(32)]
    assert len(server.requests) == 32
