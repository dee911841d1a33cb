"""Logs are kept by their content."""

from pathlib import Path

from slipstream.memory.logs import LogStore


def test_same_log_is_kept_once(tmp_path: Path) -> None:
    logs = LogStore(tmp_path)
    assert logs.add("x") == logs.add("x") != logs.add("y")
    assert logs.add(" \n") == ""
    assert len(list(tmp_path.iterdir())) == 2
