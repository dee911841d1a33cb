"""The providers' own clients, pointed at a scripted server, and one way to ask them."""

from typing import Any

from langchain_anthropic import ChatAnthropic
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.runnables import Runnable
from langchain_openai import ChatOpenAI
from model_server import ModelServer

WIRES = ("openai", "anthropic")
WAYS = ("invoke", "stream")


def make_client(server: ModelServer, wire: str, **options: Any) -> ChatOpenAI | ChatAnthropic:
    """Return a client that tries once."""
    common: dict[str, Any] = {"model": "m", "api_key": "k", "max_retries": 0, **options}
    if wire == "openai":
        return ChatOpenAI(base_url=f"{server.url}/v1", stream_usage=True, **common)
    return ChatAnthropic(base_url=server.url, **common)


def ask(client: Runnable[Any, Any], way: str, messages: Any = "Hi") -> AIMessage:
    """Return the answer, in one piece or as the sum of its chunks."""
    if way == "invoke":
        answer = client.invoke(messages)
        assert isinstance(answer, AIMessage)
        return answer
    chunks: list[AIMessageChunk] = list(client.stream(messages))
    return sum(chunks[1:], start=chunks[0])
