"""`slipstream verify`: what it concludes from figures, and a real reproduction of a tiny engine."""

import re
from pathlib import Path

import pytest
from tiny_challenge import write_tiny

from slipstream.evaluation.audits import Audit, report_audits
from slipstream.evaluation.challenge import load_challenge
from slipstream.evaluation.errors import SlipstreamError
from slipstream.evaluation.gates import DocumentScore, report
from slipstream.evaluation.pairs import Stage
from slipstream.evaluation.statistics import Estimate
from slipstream.graph.opening import open_context
from slipstream.graph.racing import race
from slipstream.graph.reproducing import Outcome, conclude, reproduce
from slipstream.graph.session import new_run
from slipstream.graph.survey import starting_champion
from slipstream.kernels.levers import SEED_SETTINGS
from slipstream.kernels.variants import Tree, VariantStore, seed_tree
from slipstream.memory.records import Variant
from slipstream.memory.store import open_memory

CLAIM = Estimate(0.5, 0.01, 12)
GOOD = report([DocumentScore(f"d{i}", 100, 100, 100, 0.1, 100) for i in range(4)])
BAD = report([DocumentScore(f"d{i}", 100, 120, 100, 0.1, 100) for i in range(4)])
CLEAN = report_audits(
    [Audit(Stage.BASELINE, i, 0, 50, 50, None, 0.0, 0.0, 0, 0.0) for i in range(4)]
)
CAUGHT = report_audits(
    [Audit(Stage.BASELINE, i, 0, 50, 50, None, 0.0, 0.0, 9, 0.0) for i in range(4)]
)


@pytest.mark.parametrize(
    ("found", "quality", "audits", "outcome", "reason"),
    [
        (Estimate(0.5, 0.01, 12), GOOD, CLEAN, Outcome.VALID, "1.65× .* found, 1.65× on record"),
        (Estimate(0.6, 0.01, 12), GOOD, CLEAN, Outcome.VALID, "found"),  # faster is no lie
        (Estimate(0.4, 0.01, 12), GOOD, CLEAN, Outcome.INVALID, "slower than claimed"),
        (Estimate(0.5, 0.20, 12), GOOD, CLEAN, Outcome.INCONCLUSIVE, "too noisy"),
        (Estimate(0.5, 0.01, 12), BAD, CLEAN, Outcome.INVALID, "PPL"),
        (Estimate(0.5, 0.01, 12), GOOD, CAUGHT, Outcome.INVALID, "36 of 200 timed tokens"),
    ],
)
def test_conclusion(found, quality, audits, outcome, reason) -> None:  # type: ignore[no-untyped-def]
    concluded, why = conclude(load_challenge("smollm2-cpu"), CLAIM, found, quality, audits)
    assert concluded is outcome
    assert re.search(reason, why)


def test_without_a_claim_nothing_is_confirmed() -> None:
    outcome, reason = conclude(load_challenge("smollm2-cpu"), None, CLAIM, GOOD, CLEAN)
    assert outcome is Outcome.INCONCLUSIVE
    assert "no speed-up is on record" in reason


def test_changed_source_is_not_run_without_a_sandbox(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_tiny(tmp_path)
    tree = seed_tree(SEED_SETTINGS)
    source = tree.files["engine/engine.py"] + f"\nopen({str(tmp_path / 'ran')!r}, 'w')\n".encode()
    changed = Tree({**tree.files, "engine/engine.py": source})
    VariantStore(home / "variants").add(changed)
    monkeypatch.setattr("slipstream.evaluation.sandbox.problem", lambda: "no bwrap here")
    monkeypatch.setattr("slipstream.evaluation.evaluator.problem", lambda: "no bwrap here")
    with open_memory() as memory:
        run = new_run(load_challenge(str(path)), memory, seed=1).id
        memory.add_variant(Variant(changed.id, None, changed.engine_id, changed.settings, run, 0.0))
        for refused in (
            lambda: reproduce(memory, changed.id, str(path), fresh_seed=False, say=print),
            lambda: race(memory, changed.id, "seed", str(path), 2, print),
        ):
            with pytest.raises(SlipstreamError, match=r"no sandbox to run it in: no bwrap here"):
                refused()
        assert not (tmp_path / "ran").exists()
        race(memory, changed.id, "seed", str(path), 2, print, unsafe_local=True)
    assert (tmp_path / "ran").exists()


@pytest.mark.timed
def test_a_real_engine_is_reproduced(home: Path, tmp_path: Path) -> None:
    path = write_tiny(tmp_path)
    said: list[str] = []
    with open_memory() as memory:
        run = new_run(load_challenge(str(path)), memory, seed=1)
        with open_context(run.id, memory) as context:
            variant = starting_champion(context)
        found = reproduce(memory, variant[:6], str(path), fresh_seed=True, say=said.append)
        with pytest.raises(SlipstreamError, match="unknown variant"):
            reproduce(memory, "nope", str(path), fresh_seed=False, say=said.append)
    assert found.variant == variant
    assert found.claimed is not None
    assert found.speedup.num_pairs == 4
    assert found.quality is not None
    assert found.quality.num_tokens == 4 * 8
    assert found.audits is not None
    assert found.audits.num_tokens == 3 * 8
    assert found.audits.contradictions == 0
    assert found.within_5_percent == (abs(found.speedup.ratio / found.claimed.ratio - 1) <= 0.05)
    assert any(text.startswith("audited 3") for text in said)
