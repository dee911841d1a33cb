"""The secret of held-out documents."""

from pathlib import Path

from slipstream.evaluation.secret import held_out_seed


def test_secret_is_made_once_and_only_its_owner_reads_it(home: Path) -> None:
    seed = held_out_seed()
    assert seed == held_out_seed()
    assert seed != held_out_seed("salt")
    path = home / "secret"
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.read_text() not in seed
    assert [p.name for p in home.iterdir()] == ["secret"]
