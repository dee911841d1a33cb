"""What a failed engine printed is kept, and named by its experiment."""

import pytest
from loops import Fixed, Loop

from slipstream.agents.offline_benchmarker import OfflineBenchmarker
from slipstream.agents.offline_coder import OfflineCoder
from slipstream.evaluation.acceptance import Verdict
from slipstream.evaluation.errors import EngineFailedError
from slipstream.evaluation.home import data_dir
from slipstream.graph.opening import Agents
from slipstream.memory.logs import LogStore

LOG = "Traceback\n  File engine.py, line 7\nZeroDivisionError: division by zero\n"


def test_log_of_a_failed_engine_is_kept(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(variant: str) -> None:
        raise EngineFailedError("ended (exit 1): ZeroDivisionError: division by zero", LOG)

    monkeypatch.setattr(loop.evaluator, "smoke", fail)
    run = loop.start(experiments=1)
    loop.drive(run, Agents(Fixed({"weights": "int8"}), OfflineCoder(), OfflineBenchmarker()))
    (race,) = [e for e in loop.memory.experiments(run=run) if e.hypothesis]
    assert race.verdict is Verdict.FAILED
    assert race.log is not None
    logs = LogStore(data_dir() / "logs")
    assert logs.read(race.log) == LOG
    assert list(logs.names()) == [race.log]
