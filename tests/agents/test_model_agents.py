"""Model agents without a loop: what their tools do, and how their conversations end."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from model_server import BadArguments, Call, ModelServer, Refuse, Reply, Request, Say

from slipstream.agents.chat import Chat
from slipstream.agents.model_benchmarker import ModelBenchmarker
from slipstream.agents.model_coder import MAX_STEPS, ModelCoder
from slipstream.agents.model_planner import ModelPlanner
from slipstream.agents.roles import Briefing, CoderError, LookLimits
from slipstream.agents.session import Purse, Session
from slipstream.agents.specs import ModelSpec
from slipstream.evaluation.acceptance import Cause, Judgement, Verdict
from slipstream.evaluation.statistics import Estimate
from slipstream.graph.looking import changes, without
from slipstream.kernels.census import ModelShape
from slipstream.kernels.levers import SEED_SETTINGS, Machine
from slipstream.kernels.variants import Tree, seed_tree
from slipstream.memory.cassette import NoCassette
from slipstream.memory.costs import Costs
from slipstream.memory.records import Hypothesis, Observation, Run, RunState
from slipstream.memory.search import Hit
from slipstream.memory.store import open_memory

SEED = seed_tree(SEED_SETTINGS)
SMOLLM2 = ModelShape(576, 1536, 30, 9, 3, 64, 49152, "llama")
IDEA = Hypothesis(
    *("r1-001", "r1", 0, "p", SEED.id, "edit", SEED_SETTINGS),
    mechanism="norms are read twice",
    predicted_gain=0.1,
    created_at=1.0,
    target="edit engine/norm.py",
)
HIT = Hit("r0-1", "head", "int8", "kept", 0.1, "heads shrink", "later", "c", "m", "llama", False, 1)
BRIEFING = Briefing(
    *("c", SMOLLM2, Machine("cpu", 2, has_compiler=True), 28.0, SEED.id, SEED_SETTINGS, 50.0),
    *((), (), 1),
    tree=SEED,
    search=lambda words: [HIT] if "head" in words else [],
)


@dataclass
class Bench:
    """Satisfies `Workbench`; remembers what it ran."""

    facts: str = "a small model"
    left_s: float = 100.0
    ran: list[Tree] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def run(self, tree: Tree) -> str:
        self.ran.append(tree)
        return self.errors.pop(0) if self.errors else ""

    def check(self, tree: Tree) -> str:
        return "against the reference: PPL +0.10%"

    def test(self, tree: Tree, kernel: str) -> str:
        return f"right in all cases: {kernel} 3"


@pytest.fixture
def chat_with(home: Path) -> Iterator[Callable[[Callable[[Request], Reply], str], Chat]]:
    servers: list[ModelServer] = []
    with open_memory() as memory:
        run = Run("r1", "c", {}, "m", "m", 1, RunState.RUNNING, 5, 5, 0.0, False, None, None, 1.0)
        memory.add_run(run)
        costs = Costs(memory.database)
        session = Session("r1", 1, costs, Purse("r1", costs), NoCassette(), lambda: 100.0)

        def make(script: Callable[[Request], Reply], role: str) -> Chat:
            servers.append(ModelServer(script))
            return Chat(ModelSpec("anthropic", "m", servers[-1].url), role, session)

        yield make
    for server in servers:
        assert not server.errors
        server.close()


ChatWith = Callable[[Callable[[Request], Reply], str], Chat]


def calls(*steps: Call | Reply) -> Callable[[Request], Reply]:
    left = list(steps)

    def script(_: Request) -> Reply:
        step = left.pop(0)
        return Say(calls=(step,)) if isinstance(step, Call) else step

    return script


def always(step: Call) -> Callable[[Request], Reply]:
    return lambda _: Say(calls=(step,))


EDIT = Call("edit", {"path": "engine/norm.py", "old": '"""Root-mean', "new": '"""Root mean'})
FINISH = Call("finish", {"summary": "done"})


def test_coder_edits_and_hands_in(chat_with: ChatWith) -> None:
    bench = Bench(errors=["NameError: x"])
    steps = (Call("run", {}), EDIT, Call("run", {}), Call("check", {}), FINISH)
    tree = ModelCoder(chat_with(calls(*steps), "coder")).implement(IDEA, SEED, bench)
    assert b"Root mean square" in tree.files["engine/norm.py"].replace(b"-", b" ")
    assert [ran.id for ran in bench.ran] == [SEED.id, tree.id]


def test_coder_sets_levers_without_asking(chat_with: ChatWith) -> None:
    idea = replace(IDEA, lever="fuse", settings={**SEED_SETTINGS, "fuse": "qkv"})
    coder = ModelCoder(chat_with(calls(), "coder"))
    assert coder.implement(idea, SEED, Bench()).settings["fuse"] == "qkv"


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (always(Call("run", {})), "went round in circles: run gave the same 4 times"),
        (always(Call("give_up", {"reason": "it can't be done"})), "gave up: it can't be done"),
        (always(FINISH), "went round in circles"),
        (always(Call("bash", {"command": "ls"})), "went round in circles"),
        (lambda _: Say("I think it is fine as it is."), "no tool was called, 4 times"),
        (lambda _: Refuse(), "you refused, 4 times"),
        (lambda _: BadArguments("edit", "not json"), "arguments of edit are not JSON: .*, 4 times"),
    ],
    ids=["doom", "gives-up", "nothing-done", "no-such-tool", "talks", "refuses", "malformed"],
)
def test_how_a_coder_fails(
    chat_with: ChatWith, script: Callable[[Request], Reply], said: str
) -> None:
    with pytest.raises(CoderError, match=said):
        ModelCoder(chat_with(script, "coder")).implement(IDEA, SEED, Bench())


def test_running_again_after_an_edit_is_no_circle(chat_with: ChatWith) -> None:
    steps: list[Call | Reply] = []
    for number in range(6):
        old = '"""Root-mean' if number == 0 else f'"""Root {number - 1} mean'
        new = f'"""Root {number} mean'
        steps += [Call("edit", {"path": "engine/norm.py", "old": old, "new": new})]
        steps += [Call("run", {})]
    tree = ModelCoder(chat_with(calls(*steps, FINISH), "coder")).implement(IDEA, SEED, Bench())
    assert b"Root 5 mean" in tree.files["engine/norm.py"]


def test_an_edit_without_an_edit_is_not_handed_in(chat_with: ChatWith) -> None:
    idea = replace(IDEA, lever="edit+fuse", settings={**SEED_SETTINGS, "fuse": "qkv"})
    told: list[str] = []
    steps = calls(FINISH, EDIT, FINISH)

    def script(request: Request) -> Reply:
        told.append(request.messages[-1].text)
        return steps(request)

    ModelCoder(chat_with(script, "coder")).implement(idea, SEED, Bench())
    assert "nothing is changed yet" in told[1]


def test_coder_has_so_many_steps_and_no_more(chat_with: ChatWith) -> None:
    count = iter(range(10_000))
    script = lambda _: Say(calls=(Call("search", {"text": f"word {next(count)}"}),))  # noqa: E731
    with pytest.raises(CoderError, match=f"not done after {MAX_STEPS} steps"):
        ModelCoder(chat_with(script, "coder")).implement(IDEA, SEED, Bench())


def test_coder_stops_when_its_time_is_over(chat_with: ChatWith) -> None:
    with pytest.raises(CoderError, match="its time was over"):
        ModelCoder(chat_with(calls(), "coder")).implement(IDEA, SEED, Bench(left_s=0.0))


def test_coder_repairs_from_the_real_error_in_the_same_conversation(chat_with: ChatWith) -> None:
    mend = Call("edit", {"path": "engine/norm.py", "old": "Root mean", "new": "Root-mean"})
    seen: list[str] = []
    inner = calls(EDIT, FINISH, mend, FINISH)

    def script(request: Request) -> Reply:
        seen.append(request.messages[-1].text)
        return inner(request)

    coder = ModelCoder(chat_with(script, "coder"))
    tree = coder.implement(IDEA, SEED, Bench())
    mended = coder.repair(IDEA, tree, "SyntaxError: line 3", Bench())
    assert mended is not None
    assert mended.id != tree.id
    assert any("SyntaxError: line 3" in text for text in seen)


GOOD = {
    "kind": "levers",
    "levers": {"fuse": "qkv"},
    "mechanism": "three products of one vector become one",
    "arithmetic": "saves 60 launches of 4 microseconds",
    "predicted_gain": 0.05,
    "risk": "rounding order",
    "falsifier": "the products take as long as before",
}


def test_planner_reads_searches_and_proposes(chat_with: ChatWith) -> None:
    told: list[str] = []
    steps = calls(
        Call("search_findings", {"words": "int8 head"}),
        Call("list_files", {}),
        Call("read_file", {"path": "engine/norm.py", "count": 5}),
        Call("read_file", {"path": "../evaluation/acceptance.py"}),
        Call("propose", {"ideas": [GOOD]}),
    )

    def script(request: Request) -> Reply:
        told.append(request.messages[-1].text)
        return steps(request)

    (proposal,) = ModelPlanner(chat_with(script, "planner")).plan(BRIEFING, 1)
    assert "heads shrink" in told[1]
    assert "engine/norm.py" in told[2]
    assert "Root-mean-square" in told[3]
    assert "no file '../evaluation/acceptance.py' here" in told[4]
    assert proposal.settings == {**SEED_SETTINGS, "fuse": "qkv"}
    assert (proposal.lever, proposal.predicted_gain) == ("fuse", pytest.approx(0.05))
    assert proposal.falsifier == GOOD["falsifier"]


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({"levers": {}}, "it changes nothing"),
        ({"levers": {"fuse": "all"}}, "fuse=all: not one of"),
        ({"levers": {"threads": "16"}}, "this machine has 2 cores"),
        ({"kind": "edit", "files": []}, "an edit names the files"),
        ({"predicted_gain": 1000}, "predicted_gain"),
        ({"risk": ""}, "risk"),
        ({"verdict": "kept"}, "verdict"),
    ],
)
def test_planner_is_told_what_is_wrong_and_gets_another_try(
    chat_with: ChatWith, bad: dict[str, object], said: str
) -> None:
    told: list[str] = []
    steps = calls(Call("propose", {"ideas": [{**GOOD, **bad}]}), Call("propose", {"ideas": [GOOD]}))

    def script(request: Request) -> Reply:
        told.append(request.messages[-1].text)
        return steps(request)

    (proposal,) = ModelPlanner(chat_with(script, "planner")).plan(BRIEFING, 1)
    assert said in told[1]
    assert proposal.lever == "fuse"


JUDGED = Judgement(
    Verdict.KEPT, Cause.GAIN, "+12.5% over the champion", Estimate(0.1178, 0.01, 12), tps=56.2
)


@pytest.mark.parametrize(
    ("mechanism", "accepted"),
    [
        ("It read half of the bytes. That gave 12.5 % where 10.0 % was expected.", True),
        ("It read half of the bytes and so it was faster, as expected. Very good.", False),
        ("One. Two. Three sentences are one too many, although they cite 12.5 %.", False),
    ],
)
def test_explanations_cite_figures(chat_with: ChatWith, mechanism: str, accepted: bool) -> None:
    reply = Call("explain", {"mechanism": mechanism, "reopen": "with another head"})
    chat = chat_with(always(reply), "benchmarker")
    found = ModelBenchmarker(chat).explain(IDEA, JUDGED)
    assert (found.mechanism == mechanism) is accepted
    if not accepted:
        assert found.mechanism.startswith("Expected +10.0%")  # the offline benchmarker's


def test_looks_stay_within_the_limits(chat_with: ChatWith) -> None:
    wanted = [
        {"kind": "repeats", "pairs": 5000, "why": "noise"},
        {"kind": "ablation", "without": ["fuse", "fuse", "norm"], "pairs": 3, "why": "which"},
        {"kind": "ablation", "without": ["fuse", "weights"], "pairs": 3, "why": "all of it"},
        {"kind": "profile", "why": "where"},
    ]
    chat = chat_with(always(Call("look", {"looks": wanted})), "benchmarker")
    looks = ModelBenchmarker(chat).look(IDEA, JUDGED, ["fuse", "weights"], LookLimits(3, 4))
    assert [(one.kind, one.pairs, set(one.without)) for one in looks] == [
        ("repeats", 4, set()),
        ("ablation", 3, {"fuse"}),
    ]
    seen = Observation("o", "r1-001", "repeats", "x", "+99.9% against the rival", {}, 1.0)
    told = {"mechanism": "Repeated, it was 99.9 % faster. Odd.", "reopen": "on a quiet machine"}
    chat = chat_with(always(Call("explain", told)), "benchmarker")
    assert "99.9" in ModelBenchmarker(chat).explain(IDEA, JUDGED, [seen]).mechanism


def test_an_ablation_takes_back_what_it_names() -> None:
    files = {**SEED.files, "engine/new.py": b"x = 1\n", "engine/norm.py": b"y = 2\n"}
    candidate = Tree(files).with_settings({**SEED_SETTINGS, "fuse": "qkv", "norm": "layer-norm"})
    assert changes(candidate, SEED) == ["fuse", "norm", "engine/new.py", "engine/norm.py"]
    less = without(candidate, SEED, ("fuse", "engine/new.py"))
    assert changes(less, SEED) == ["norm", "engine/norm.py"]
    assert without(candidate, SEED, tuple(changes(candidate, SEED))) == SEED
