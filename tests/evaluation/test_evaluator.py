"""The local evaluator: whose source it starts, and in what."""

from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_challenge import TINY

from slipstream.evaluation import evaluator as module
from slipstream.evaluation.challenge import parse_challenge
from slipstream.evaluation.errors import ExposedError
from slipstream.evaluation.evaluator import LocalEvaluator
from slipstream.evaluation.prompts import Prompt, Split
from slipstream.evaluation.sandbox import NoSandbox
from slipstream.kernels.census import read_shape
from slipstream.kernels.levers import SEED_SETTINGS
from slipstream.kernels.variants import Tree, VariantStore, seed_tree

PROMPTS = [Prompt("p", "random", Split.PUBLIC, (1, 2, 3))]
SHIPPED = seed_tree(SEED_SETTINGS)
Start = Callable[[Tree, bool], None]


@pytest.fixture
def start(home: Path, tmp_path: Path, tiny_llama: Path) -> Start:
    """Start a tree without a sandbox, on a few tokens."""
    store = VariantStore(tmp_path / "variants")

    def try_out(tree: Tree, unsafe_local: bool) -> None:
        store.add(tree)
        evaluator = LocalEvaluator(
            parse_challenge(TINY, source="tiny"),
            tiny_llama,
            PROMPTS,
            PROMPTS,
            store.path,
            vocab_size=read_shape(tiny_llama).vocab_size,
            seed=1,
            scratch=tmp_path / "scratch",
            sandbox=NoSandbox(),
            unsafe_local=unsafe_local,
        )
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
