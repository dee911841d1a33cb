"""What kind of machine an executor measures on: what tells one leaderboard from another."""

from slipstream.evaluation.challenge import Challenge
from slipstream.evaluation.executors import HF_JOBS, LOCAL, look_at, parse_executor
from slipstream.evaluation.hardware import Hardware, detect_hardware

from .flavors import find_flavor


def hardware_of(executor: str, challenge: Challenge) -> Hardware:
    """Return the machine behind an executor, as it was asked for; empty means the challenge's.

    Raises:
        SlipstreamError: no such executor or flavor, or a cluster that can't be reached.
    """
    asked = parse_executor(executor or challenge.executor)
    if asked.kind == LOCAL:
        return detect_hardware()
    if asked.kind == HF_JOBS:
        return find_flavor(asked.where).site.hardware
    return look_at(asked, challenge).hardware
