"""The local evaluator: whose source it starts, and in what."""

from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_challenge import TINY

from slipstream.evaluation import evaluator as module
from slipstream.evaluation.challenge import parse_challenge
from slipstream.evaluation.errors import ExposedError
from slipstream.evaluation.evaluator import LocalEvaluator
from slipstream.evaluation.pairs import Stage
from slipstream.evaluation.prompts import Prompt, Split
from slipstream.evaluation.sandbox import NoSandbox
from slipstream.kernels.census import read_shape
from slipstream.kernels.levers import SEED_SETTINGS
from slipstream.kernels.variants import Tree, VariantStore, seed_tree

PROMPTS = [Prompt("p", "random", Split.PUBLIC, (1, 2, 3))]
SHIPPED = seed_tree(SEED_SETTINGS)
Start = Callable[[Tree, bool], None]


def open_on(model: Path, folder: Path, *trees: Tree, unsafe_local: bool = False) -> LocalEvaluator:
    store = VariantStore(folder / "variants")
    for tree in trees:
        store.add(tree)
    return LocalEvaluator(
        parse_challenge(TINY, source="tiny"),
        model,
        PROMPTS,
        PROMPTS,
        store.path,
        vocab_size=read_shape(model).vocab_size,
        seed=1,
        scratch=folder / "scratch",
        sandbox=NoSandbox(),
        unsafe_local=unsafe_local,
    )


@pytest.fixture
def start(home: Path, tmp_path: Path, tiny_llama: Path) -> Start:
    """Start a tree without a sandbox, on a few tokens."""

    def try_out(tree: Tree, unsafe_local: bool) -> None:
        evaluator = open_on(tiny_llama, tmp_path, tree, unsafe_local=unsafe_local)
        try:
            evaluator.smoke(tree.id)
        finally:
            evaluator.close()

    return try_out


def changed(ran: Path) -> Tree:
    """The shipped engine, with a line that leaves a trace when it is run."""
    source = SHIPPED.files["engine/engine.py"] + f"\nopen({str(ran)!r}, 'w')\n".encode()
    return Tree({**SHIPPED.files, "engine/engine.py": source})


@pytest.mark.parametrize("why", ["", "bubblewrap is not installed"])
def test_changed_source_is_refused_without_a_sandbox_even_where_there_could_be_one(
    why: str, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "problem", lambda: why)
    tree = changed(tmp_path / "ran")
    told = f"no sandbox to run it in: {why or 'none was asked for'}; --unsafe-local runs it"
    with pytest.raises(ExposedError, match=told):
        start(tree, False)
    assert not (tmp_path / "ran").exists()
    start(SHIPPED, False)
    start(tree, True)
    assert (tmp_path / "ran").exists()


def test_a_rival_does_not_carry_over_what_it_saw_in_another_race(
    home: Path, tmp_path: Path, tiny_llama: Path
) -> None:
    """As when several experiments in flight share a place: another screens between two stages."""
    one, other = (SHIPPED.with_settings({"fuse": value}) for value in ("qkv", "qkv+gate-up"))
    evaluator = open_on(tiny_llama, tmp_path, SHIPPED, one, other)
    pids: list[int] = []

    def race(variant: Tree, stage: Stage) -> None:
        assert list(evaluator.pairs(variant.id, SHIPPED.id, stage, {0: 0}))
        pids.append(evaluator._warm[SHIPPED.id]._process.pid)

    try:
        race(one, Stage.SCREEN)
        race(one, Stage.TEST)
        race(other, Stage.SCREEN)
        race(one, Stage.TEST)
    finally:
        evaluator.close()
    assert pids[0] == pids[1]
    assert len(set(pids)) == 3
