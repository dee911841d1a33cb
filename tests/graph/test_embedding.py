"""The agents as nodes of a foreign graph, with a critic between planner and coder."""

from typing import Any, TypedDict

from instant import SMOLLM2
from langgraph.graph import END, START, StateGraph
from loops import Loop

from slipstream import benchmarker_node, coder_node, open_context, planner_node
from slipstream.evaluation.acceptance import Verdict
from slipstream.evaluation.bench import Bench


class HostState(TypedDict, total=False):
    """A foreign state: slipstream's fields, and one of its own."""

    round: int
    champion: str
    hypotheses: tuple[str, ...]
    variants: dict[str, str]
    verdicts: dict[str, str]
    refused: list[str]


def test_foreign_graph_with_a_critic(loop: Loop) -> None:
    run = loop.start(experiments=50)
    opened = open_context(
        run, loop.memory, bench=Bench(loop.evaluator, SMOLLM2, loop.challenge.quality.documents)
    )
    with opened as context:

        def critic(state: HostState) -> dict[str, Any]:
            """Refuse weights in groups of 64, which it has reason to distrust."""
            asked = {h: loop.memory.hypothesis(h).settings for h in state["hypotheses"]}
            good = tuple(h for h, levers in asked.items() if levers["weights"] != "int4-g64")
            return {"hypotheses": good, "refused": [h for h in asked if h not in good]}

        host = StateGraph(HostState)
        host.add_node("plan", planner_node(context))
        host.add_node("criticise", critic)
        host.add_node("code", coder_node(context))
        host.add_node("benchmark", benchmarker_node(context))
        host.add_edge(START, "plan")
        host.add_edge("plan", "criticise")
        host.add_edge("criticise", "code")
        host.add_edge("code", "benchmark")
        host.add_edge("benchmark", END)
        app = host.compile()

        state: HostState = {"round": 0}
        verdicts: dict[str, str] = {}
        refused: list[str] = []
        for round_ in range(6):
            final = app.invoke({"round": round_, "champion": state.get("champion", "")})
            state = {"champion": final["champion"]}
            verdicts |= final["verdicts"]
            refused += final["refused"]
        seed = context.seed_variant
    assert Verdict.KEPT in verdicts.values()
    assert state["champion"] != seed
    assert refused
    judged = {e.id for e in loop.memory.experiments(run=run) if e.hypothesis and e.verdict}
    assert judged == verdicts.keys()
    assert len(loop.memory.findings()) == len(verdicts)
