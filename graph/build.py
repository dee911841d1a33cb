"""The whole machine on one screen.

    survey ─→ plan ─→ implement ×N ─→ inspect ─→ approve ─→ measure ─→ judge ─→ look ─→ record ─┐
       ↑        └── nothing left ──→ verify ←── budget spent ─────────────── reflect ←──────────┘
       └───────────────────────────────────────────────────────────────────────┘

Every node is `state -> changes`. A node may run again after a crash: its side effects carry unique
keys, and what memory already has is not measured again.
"""

from langgraph.graph import END, START, StateGraph

from .approval import approve
from .context import LoopContext
from .implement import implement
from .inspection import inspect
from .judge import judge
from .looking import look
from .measure import measure
from .plan import plan
from .record import record
from .reflect import reflect
from .state import LoopState, Task
from .survey import survey
from .verify import verify


def build_graph() -> StateGraph[LoopState, LoopContext, LoopState, LoopState]:
    """Return the loop, uncompiled: compile it with a checkpointer of your choice."""
    graph = StateGraph(LoopState, context_schema=LoopContext)
    graph.add_node("survey", survey)
    graph.add_node("plan", plan)  # → implement ×N, or verify
    graph.add_node("implement", implement, input_schema=Task)
    graph.add_node("inspect", inspect)
    graph.add_node("approve", approve)  # pauses only if somebody asked for it
    graph.add_node("measure", measure)
    graph.add_node("judge", judge)
    graph.add_node("look", look)
    graph.add_node("record", record)
    graph.add_node("reflect", reflect)  # → survey, or verify
    graph.add_node("verify", verify)

    graph.add_edge(START, "survey")
    graph.add_edge("survey", "plan")
    graph.add_edge("implement", "inspect")
    graph.add_edge("inspect", "approve")
    graph.add_edge("approve", "measure")
    graph.add_edge("measure", "judge")
    graph.add_edge("judge", "look")
    graph.add_edge("look", "record")
    graph.add_edge("record", "reflect")
    graph.add_edge("verify", END)
    return graph
