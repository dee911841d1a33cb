"""Runs whose agents are language models, behind servers that speak the real formats."""

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from loops import Loop
from model_server import BadArguments, Cut, Fail, Garbage, ModelServer, Refuse, Reply
from thinking import Script, comment, edit_idea, lever_idea

from slipstream.agents.specs import AgentSpecs
from slipstream.evaluation.acceptance import Cause, Verdict
from slipstream.evaluation.errors import SlipstreamError
from slipstream.evaluation.home import data_dir
from slipstream.graph.liveness import run_dir
from slipstream.graph.opening import CASSETTE, PROGRAM
from slipstream.graph.replaying import replay
from slipstream.graph.session import new_run
from slipstream.memory.board import Board
from slipstream.memory.costs import Costs, bill
from slipstream.memory.frames import costs_frame
from slipstream.memory.records import RunState
from slipstream.memory.steering import answer, steer

SECRET = "sk-ant-secret-0123456789abcdefghij"


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLIPSTREAM_API_KEY", SECRET)
    monkeypatch.setattr("slipstream.agents.chat._FIRST_PAUSE_S", 0.01)


@pytest.fixture
def serve() -> Iterator[Callable[[Script], ModelServer]]:
    servers: list[ModelServer] = []

    def start(script: Script) -> ModelServer:
        servers.append(ModelServer(script))
        return servers[-1]

    yield start
    for server in servers:
        assert not server.errors
        server.close()


def specs(server: ModelServer, wire: str, **changes: object) -> AgentSpecs:
    base = f"{server.url}/v1" if wire == "openai" else server.url
    model = f"{wire}:m@{base}"
    return AgentSpecs(**({"planner": model, "coder": model, "benchmarker": model} | changes))  # type: ignore[arg-type]


def start(loop: Loop, agents: AgentSpecs, *, experiments: int = 4, usd: float | None = None) -> str:
    run = new_run(
        loop.challenge, loop.memory, experiments=experiments, seed=1, agents=agents, usd=usd
    )
    return run.id


IDEAS = (
    [lever_idea(weights="int8")],
    [edit_idea("engine/norm.py")],
    [lever_idea(weights="int4-g64")],
    [edit_idea("engine/norm.py", mechanism="another thing entirely is copied twice in the loop")],
)
FAULTS: dict[int, Reply] = {
    1: Fail(429, retry_after=0.01),
    3: Fail(500),
    5: Cut(60),
    7: BadArguments("propose", "{broken"),
    9: Garbage(),
    11: Refuse(),
    14: Fail(529),
    16: Cut(200),
    18: BadArguments("edit", "{'path': 1"),
}


@pytest.mark.parametrize("wire", ["openai", "anthropic"])
def test_a_whole_run_through_every_fault(
    loop: Loop, serve: Callable[[Script], ModelServer], wire: str
) -> None:
    script = Script(IDEAS, [comment(1), comment(2)], FAULTS.get)
    server = serve(script)
    run = start(loop, specs(server, wire))
    outcome = loop.drive(run)
    assert outcome.run.state is RunState.FINISHED
    races = sorted(
        (e for e in loop.memory.experiments(run=run) if e.hypothesis), key=lambda e: e.id
    )
    none = (Cause.NO_GAIN, Cause.POWER)
    assert [races[0].cause, races[2].cause] == [Cause.GAIN, Cause.QUALITY]
    assert races[1].cause in none
    assert races[3].cause in none
    hypotheses = loop.memory.hypotheses(run)
    assert {h.agent for h in hypotheses} == {
        f"{wire}:m@{specs(server, wire).planner[len(wire) + 3 :]}"
    }
    assert all(h.risk and h.falsifier for h in hypotheses)
    assert hypotheses[1].target == "edit engine/norm.py"
    edited = loop.memory.variant(races[1].variant)
    assert edited.engine != loop.memory.variant(races[0].variant).engine
    # The benchmarker's words are tied to the figures.
    assert all("as the figures say" in f.mechanism for f in loop.memory.findings())
    # A malformed answer costs one retry: each fault is one request more than the script needs.
    costs = Costs(loop.memory.database).of_run(run)
    models = [cost for cost in costs if cost.role != "measuring"]
    assert len(models) == len(server.requests)
    assert all(cost.outcome != "in flight" for cost in costs)
    assert {cost.outcome for cost in models} >= {"ok", "rate-limited", "server error 500"}


def test_the_key_is_in_nothing_that_is_written(
    loop: Loop, serve: Callable[[Script], ModelServer], home: Path
) -> None:
    leaky = {2: Fail(429, message=f"slow down, {SECRET}", retry_after=0.01)}
    idea = lever_idea(weights="int8") | {"mechanism": f"the key is {SECRET}, and int8 is small"}
    server = serve(Script([[idea]], disturb=leaky.get))
    run = start(loop, specs(server, "anthropic"), experiments=1)
    loop.drive(run)
    assert loop.memory.hypotheses(run)
    assert any(SECRET in str(request.headers) for request in server.requests)
    for path in home.rglob("*"):
        if path.is_file():
            assert SECRET.encode() not in path.read_bytes(), path
    assert not any(SECRET in event.text for event in loop.events)


def test_replay_is_the_same_run_offline(
    loop: Loop, serve: Callable[[Script], ModelServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    Board(loop.memory.database, "ada").post("int8 is a good start", channel="gains")
    looks = [
        {"kind": "profile", "why": "where the time is"},
        {"kind": "repeats", "pairs": 99, "why": "is it noise"},
    ]
    script = Script(IDEAS, [comment(1), comment(2)], FAULTS.get, looks=looks)
    server = serve(script)
    run = start(loop, specs(server, "openai"))
    loop.drive(run)
    asked = len(server.requests)
    seen = [o for e in loop.memory.experiments(run=run) for o in loop.memory.observations(e.id)]
    assert {one.kind for one in seen} == {"profile", "repeats"}
    assert {len(o.figures["log_ratios"]) for o in seen if o.kind == "repeats"} == {4}
    loop.evaluator.measured.clear()
    monkeypatch.delenv("SLIPSTREAM_API_KEY")
    server.close()
    found = replay(run, loop.memory)
    assert found.difference == ""
    assert (found.experiments, found.calls) == (4, found.calls_on_tape)
    assert len(server.requests) == asked
    assert not loop.evaluator.measured
    trees = data_dir() / "variants"
    for variant in (e.variant for e in loop.memory.experiments(run=run)):
        again = Path(found.folder) / "variants" / variant
        assert (again / "engine/norm.py").read_bytes() == (
            trees / variant / "engine/norm.py"
        ).read_bytes()

    from slipstream.agents import prompting

    real = prompting.prompt_of
    monkeypatch.setattr(
        "slipstream.agents.model_coder.prompt_of",
        lambda role, **of: real(role, **of) + "\nBe bold.",
    )
    with pytest.raises(SlipstreamError, match=r"replay: call \d+ \(coder .*-002 #1\) differs"):
        replay(run, loop.memory)


def test_an_interrupted_run_pays_for_no_answer_twice(
    make_loop: Callable[[], Loop], serve: Callable[[Script], ModelServer]
) -> None:
    loop = make_loop()
    server = serve(Script(IDEAS, [comment(1), comment(2)]))
    run = start(loop, specs(server, "anthropic"))
    kept = loop.memory.add_experiment

    def die(experiment: object) -> None:
        if getattr(experiment, "id", "") == f"{run}-002":
            raise KeyboardInterrupt
        kept(experiment)  # type: ignore[arg-type]

    loop.memory.add_experiment = die  # type: ignore[assignment]
    assert loop.drive(run).stop == "interrupted"
    asked = [r for r in server.requests if "finish" in r.tools]
    again = make_loop()
    assert again.drive(run).run.state is RunState.FINISHED
    coders = [r for r in server.requests if "finish" in r.tools]
    assert len(asked) == 4
    assert len(coders) == 8  # two edits of four steps, none asked again
    races = [e for e in again.memory.experiments(run=run) if e.hypothesis]
    assert len(races) == 4
    assert all(e.verdict is not None for e in races)


def test_dollars_are_a_hard_limit(
    loop: Loop,
    serve: Callable[[Script], ModelServer],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    prices = tmp_path / "prices.toml"
    prices.write_text('["openai:m"]\ninput = 10.0\noutput = 50.0\n')
    monkeypatch.setenv("SLIPSTREAM_PRICES", str(prices))
    names = ("norm", "rope", "mlp", "cache", "linear", "llama", "model", "engine")
    ideas = [[edit_idea(f"engine/{name}.py")] for name in names]
    server = serve(Script(ideas, [comment(n) for n in range(10)]))
    run = start(loop, specs(server, "openai"), experiments=20, usd=0.3)
    committed: list[float] = []
    real = Costs.begin

    def begin(self: Costs, cost: object) -> None:
        real(self, cost)  # type: ignore[arg-type]
        committed.append(self.usd(run))

    monkeypatch.setattr(Costs, "begin", begin)
    outcome = loop.drive(run)
    assert outcome.run.state is RunState.FINISHED
    assert "of the budget of $0.30" in outcome.stop
    assert max(committed) <= 0.3
    assert server.requests
    assert costs_frame(loop.memory, run)["usd"].sum() == pytest.approx(
        Costs(loop.memory.database).usd(run)
    )
    found = bill(loop.memory, run)
    ok = sum(c.outcome == "ok" for c in Costs(loop.memory.database).of_run(run) if c.usd)
    assert found.total.usd == pytest.approx(ok * (100 * 10 + 20 * 50) * 1e-6)
    races = [e for e in loop.memory.experiments(run=run) if e.hypothesis]
    assert all(e.verdict is not None for e in races)


def test_directions_reach_the_next_plan(loop: Loop, serve: Callable[[Script], ModelServer]) -> None:
    server = serve(Script(IDEAS[:1] + IDEAS[2:3]))
    run = start(loop, specs(server, "openai", coder="offline"), experiments=2)
    (run_dir(run) / PROGRAM).write_text("<!-- not this -->\nOnly levers, please.")
    kept = loop.memory.record

    def record(*arguments: object, **named: object) -> None:
        kept(*arguments, **named)  # type: ignore[arg-type]
        steer(loop.memory, run, "ada", "Try fewer, bolder edits.")

    loop.memory.record = record  # type: ignore[method-assign]
    loop.drive(run)
    plans = [r.messages[1].text for r in server.requests if "propose" in r.tools]
    assert "Only levers, please." in plans[0]
    assert "not this" not in plans[0]
    assert "bolder" in plans[-1]


def test_a_person_approves_and_refuses(loop: Loop, serve: Callable[[Script], ModelServer]) -> None:
    server = serve(Script([IDEAS[0], IDEAS[1]], [comment(1)]))
    run = start(loop, specs(server, "openai", approve=True), experiments=2)

    def person() -> None:
        waited = threading.Event()
        for name, approved in ((f"{run}-001", True), (f"{run}-002", False)):
            while not any(name in text and "waits" in text for text in loop.texts("approve")):
                waited.wait(0.05)
            answer(
                loop.memory, name, "ada", approved=approved, text="" if approved else "too small"
            )

    watcher = threading.Thread(target=person)
    watcher.start()
    loop.drive(run)
    watcher.join()
    races = {e.id[-3:]: e for e in loop.memory.experiments(run=run) if e.hypothesis}
    assert races["001"].verdict is Verdict.KEPT
    assert (races["002"].verdict, races["002"].cause) == (Verdict.INCONCLUSIVE, Cause.REFUSED)
    assert races["002"].reason == "refused by ada: too small"
    assert (races["002"].variant, "screen", 0) not in loop.evaluator.measured


def test_planner_without_sense_is_stood_in_for(
    loop: Loop, serve: Callable[[Script], ModelServer]
) -> None:
    server = serve(Script([[lever_idea(wings="two")]] * 3))
    run = start(loop, specs(server, "anthropic", coder="offline"), experiments=1)
    loop.drive(run)
    assert any("gave no usable plan" in text for text in loop.texts("planner"))
    told = [m.text for r in server.requests for m in r.messages if m.role == "tool"]
    assert any("lever 'wings': not one of" in text for text in told)
    assert [e.verdict for e in loop.memory.experiments(run=run) if e.hypothesis]


def test_tape_is_lines_of_json(loop: Loop, serve: Callable[[Script], ModelServer]) -> None:
    server = serve(Script(IDEAS[:1]))
    run = start(loop, specs(server, "openai", coder="offline"), experiments=1)
    loop.drive(run)
    kinds = [json.loads(line)["kind"] for line in (run_dir(run) / CASSETTE).open()]
    assert set(kinds) == {"text", "call", "seen"}
