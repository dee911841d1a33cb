"""slipstream: agents mutate an LLM inference engine and keep what is proven faster.

What users import is loaded on first use, so that `import slipstream` costs neither torch nor
langgraph. `slipstream.memory.store.open_memory` and `slipstream.memory.frames` serve notebooks.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from slipstream.agents.roles import (
        Benchmarker,
        Briefing,
        Coder,
        CoderError,
        Planner,
        Proposal,
        Workbench,
    )
    from slipstream.agents.specs import AgentSpecs
    from slipstream.graph.build import build_graph
    from slipstream.graph.embedding import benchmarker_node, coder_node, planner_node
    from slipstream.graph.opening import Agents, open_context
    from slipstream.graph.session import new_run, resume
    from slipstream.memory.store import Memory, open_memory

__version__ = "0.1.0"

_HOMES = {
    "AgentSpecs": "agents.specs",
    "Agents": "graph.opening",
    "Benchmarker": "agents.roles",
    "Briefing": "agents.roles",
    "Coder": "agents.roles",
    "CoderError": "agents.roles",
    "Memory": "memory.store",
    "Planner": "agents.roles",
    "Proposal": "agents.roles",
    "Workbench": "agents.roles",
    "benchmarker_node": "graph.embedding",
    "build_graph": "graph.build",
    "coder_node": "graph.embedding",
    "new_run": "graph.session",
    "open_context": "graph.opening",
    "open_memory": "memory.store",
    "planner_node": "graph.embedding",
    "resume": "graph.session",
}

__all__ = [
    "AgentSpecs",
    "Agents",
    "Benchmarker",
    "Briefing",
    "Coder",
    "CoderError",
    "Memory",
    "Planner",
    "Proposal",
    "Workbench",
    "benchmarker_node",
    "build_graph",
    "coder_node",
    "new_run",
    "open_context",
    "open_memory",
    "planner_node",
    "resume",
]


def __getattr__(name: str) -> Any:
    """Load `name` from its room on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module 'slipstream' has no attribute {name!r}")
    return getattr(import_module(f"slipstream.{_HOMES[name]}"), name)
