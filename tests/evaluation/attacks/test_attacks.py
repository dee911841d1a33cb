"""None is kept, each is reported with its reason, and none slows the champion down."""

import math
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from arena import PRELUDE, Arena, open_arena, tree_with
from catalogue import ATTACKS, PLAIN, Attack

from slipstream.evaluation import sandbox
from slipstream.evaluation.statistics import estimate

pytestmark = [
    pytest.mark.skipif(bool(sandbox.problem()), reason=f"no sandbox: {sandbox.problem()}"),
    pytest.mark.slow,
    pytest.mark.timed,
]


# They mean to slow their rival down, and live long enough to be raced.
SABOTEURS = {
    "threads-that-hog-the-cpu",
    "daemon-that-hogs-the-cpu",
    "wakes-itself-with-a-timer",
    "scheduling-tricks",
}


@pytest.fixture(scope="module")
def arena(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    home = tmp_path_factory.mktemp("arena")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLIPSTREAM_HOME", str(home))
        patch.setenv("OPENAI_API_KEY", "sk-secret")
        small = sandbox.Limits(memory_bytes=2 << 30, scratch_bytes=128 << 20)
        patch.setattr("slipstream.evaluation.evaluator.Limits", lambda: small)
        with open_arena(home) as opened:
            assert opened.judge(tree_with(PRELUDE + PLAIN, "Honest"), "twin").verdict == "kept"
            opened.peace = opened.champions_tps()
            yield opened


def test_there_are_enough_of_them() -> None:
    assert len(ATTACKS) >= 30
    names = {attack.name for attack in ATTACKS}
    assert len(names) == len(ATTACKS)
    assert names >= SABOTEURS


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_attack_is_caught_and_its_twin_passes(arena: Arena, attack: Attack) -> None:
    cheat = tree_with(PRELUDE + attack.cheat, "Cheat")
    judgement = arena.judge(cheat, attack.name)
    during = arena.champions_tps()
    print(f"{attack.name}: {judgement.verdict}, {judgement.reason}")
    assert judgement.verdict in attack.verdicts, judgement
    assert re.search(attack.reason, judgement.reason), judgement.reason
    honest = tree_with(PRELUDE + attack.twin, "Honest")
    twin = arena.judge(honest, attack.name)
    assert twin.verdict == "kept", twin
    arena.peace = arena.champions_tps() or arena.peace  # a twin seen before isn't measured again
    if during:  # the champion was about as fast
        change = float(np.median(during) / np.median(arena.peace))
        if not 0.85 < change < 1.15:  # the machine's doing, or the attack's? more pairs tell
            during += arena.champions_tps_beside(cheat)
            arena.peace += arena.champions_tps_beside(honest)
            change = float(np.median(during) / np.median(arena.peace))
        arena.changes[attack.name] = math.log(change)
        assert 0.85 < change < 1.15, change


def test_rivals_were_not_slowed_down(arena: Arena) -> None:
    """All attacks together: the champion's speed beside them against that beside their twins.

    `benchmarks/sabotage.py` measures the strongest saboteur more closely.
    """
    if len(arena.changes) < 10:
        pytest.skip("too few attacks were selected")
    change, delta = estimate(list(arena.changes.values())), arena.context.rule().delta
    low, high = change.interval()
    print(f"beside {len(arena.changes)} attacks: {change.ratio:.3f}× ({low:.3f} to {high:.3f})")
    assert low < 1 + delta
    assert high > 1 - delta
    assert 0.97 < change.ratio < 1.03


def test_saboteurs_did_not_slow_their_rival_down(arena: Arena) -> None:
    """Those that mean to: few, so the bound is wider."""
    changes = [change for name, change in arena.changes.items() if name in SABOTEURS]
    if len(changes) < len(SABOTEURS):
        pytest.skip("not all saboteurs were selected")
    change = estimate(changes)
    low, high = change.interval()
    print(f"beside {len(changes)} saboteurs: {change.ratio:.3f}× ({low:.3f} to {high:.3f})")
    assert 0.95 < change.ratio < 1.05


def test_nothing_survives(arena: Arena) -> None:
    """After every attack above, the engines of this arena are gone with all they started."""
    arena.context.evaluator.close()
    home = arena.context.variants.root.parent
    assert not [path for path in Path("/proc").glob("[0-9]*") if _sees(path, home)]


def _sees(process: Path, folder: Path) -> bool:
    try:
        return str(folder) in (process / "mountinfo").read_text()
    except OSError:
        return False
