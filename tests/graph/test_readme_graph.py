"""The README's example of agents in somebody's own graph runs as it stands there."""

import re
from pathlib import Path

import pytest
from instant import SMOLLM2
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph
from loops import Loop

from slipstream import build_graph, open_context
from slipstream.evaluation.bench import Bench
from slipstream.evaluation.challenge import Challenge
from slipstream.graph.context import LoopContext
from slipstream.graph.state import LoopState
from slipstream.memory.records import RunState

README = Path(__file__).resolve().parents[2] / "README.md"


def test_example_of_the_readme(
    loop: Loop, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Everything is real but the measurements, which are instant."""
    (block,) = re.findall(r"```python\n(# A critic.*?)```", README.read_text(), re.DOTALL)
    bench = Bench(loop.evaluator, SMOLLM2, loop.challenge.quality.documents)

    def opened(run: str, memory: object, **named: object) -> object:
        return open_context(run, memory, bench=bench, **named)  # type: ignore[arg-type]

    def rules(_: str) -> Challenge:
        return loop.challenge

    monkeypatch.setattr("slipstream.graph.opening.open_context", opened)
    monkeypatch.setattr("slipstream.evaluation.challenge.load_challenge", rules)
    exec(compile(block, str(README), "exec"), {})
    said = capsys.readouterr().out
    assert re.search(r"'r\w{6}-001': '(kept|rejected|inconclusive)'", said)


def test_the_whole_loop_is_one_node_of_a_foreign_graph(loop: Loop) -> None:
    run = loop.start(experiments=3)
    bench = Bench(loop.evaluator, SMOLLM2, loop.challenge.quality.documents)
    with open_context(run, loop.memory, bench=bench) as context:
        host = StateGraph(LoopState, context_schema=LoopContext)
        host.add_node("before", lambda state: {"run": run})
        host.add_node("slipstream", build_graph().compile())
        host.add_node("after", lambda state: {"stop": f"{state.stop}, and reported"})
        host.add_edge(START, "before")
        host.add_edge("before", "slipstream")
        host.add_edge("slipstream", "after")
        host.add_edge("after", END)
        app = host.compile(checkpointer=InMemorySaver())
        final = app.invoke(
            {"run": ""},
            {"configurable": {"thread_id": "t"}, "recursion_limit": 1000},
            context=context,
        )
    assert final["stop"] == "3 experiments done, and reported"
    assert loop.memory.run(run).state is RunState.FINISHED
    assert sum(e.hypothesis is not None for e in loop.memory.experiments(run=run)) == 3
