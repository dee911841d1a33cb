"""Leases by the database's clock, with fences: who lost a claim can't write any more."""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest
from memories import Teller

from slipstream.evaluation.acceptance import Cause, Judgement, Verdict
from slipstream.evaluation.pairs import Pair, Stage
from slipstream.memory.claims import Claim, Holding, StaleClaimError, names, variant_key
from slipstream.memory.records import Experiment
from slipstream.memory.store import Memory, open_memory

PAIR = Pair(Stage.TEST, 0, ("p", "q"), "ABBA", 10.0, 9.0)


@pytest.fixture
def memory(url: str) -> Iterator[Memory]:
    with open_memory(url) as opened:
        yield opened


def take(memory: Memory, key: str, holder: str, lease_s: float = 60.0) -> Claim:
    found = memory.claims.acquire(key, holder, lease_s)
    assert isinstance(found, Claim)
    return found


def test_one_holder_at_a_time(memory: Memory) -> None:
    key = variant_key("c", "m", "abc")
    claim = take(memory, key, "r1")
    assert claim.fence == 1
    other = memory.claims.acquire(key, "r2")
    assert isinstance(other, Holding)
    assert (other.holder, other.fence) == ("r1", 1)
    assert 50 < other.left_s <= 60
    assert names(memory.claims.live("measure|c|m|")) == ["abc"]
    assert memory.claims.live("measure|d|") == []
    memory.claims.release(claim)
    assert memory.claims.live() == []
    assert take(memory, key, "r2").fence == 2


def test_same_holder_takes_its_claim_anew_and_the_old_one_is_stale(memory: Memory) -> None:
    """A run that is resumed goes on at once; a process of its past must not."""
    old = take(memory, "k", "r1")
    new = take(memory, "k", "r1")
    assert new.fence == old.fence + 1
    with pytest.raises(StaleClaimError, match=r"claim k of r1 \(fence 1\) has run out or changed"):
        memory.claims.renew(old)
    memory.claims.renew(new)
    memory.claims.release(old)  # changes nothing
    memory.claims.renew(new)


def test_lease_runs_out_and_writes_under_it_are_refused(memory: Memory) -> None:
    Teller(memory)
    memory.add_experiment(Experiment("r1-x", "r1", None, "seed", "b", 1.0))
    claim = take(memory, "k", "r1", 0.3)
    memory.add_pair("r1-x", PAIR, claim)  # extends it, too
    time.sleep(0.2)
    memory.add_pair("r1-x", Pair(**{**vars(PAIR), "index": 1}), claim)
    time.sleep(0.4)
    with pytest.raises(StaleClaimError):
        memory.add_pair("r1-x", Pair(**{**vars(PAIR), "index": 2}), claim)
    assert len(memory.evidence("r1-x").pairs) == 2
    assert take(memory, "k", "r2").fence == 2


def test_stale_holder_cannot_record_a_verdict(memory: Memory) -> None:
    Teller(memory)
    memory.add_experiment(Experiment("r1-y", "r1", None, "seed", "b", 1.0))
    stale = take(memory, "k", "r1", 0.01)
    time.sleep(0.05)
    with pytest.raises(StaleClaimError):
        memory.record("r1-y", Judgement(Verdict.KEPT, Cause.GAIN, "no"), None, 1.0, stale)
    found = memory.experiment("r1-y")
    assert found is not None
    assert found.verdict is None


def test_of_many_only_one_gets_it(memory: Memory) -> None:
    won: list[str] = []

    def compete(name: str) -> None:
        if isinstance(memory.claims.acquire("k", name), Claim):
            won.append(name)

    threads = [threading.Thread(target=compete, args=(f"r{n}",)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1


def test_stopped_past_its_lease_a_process_is_refused(url: str) -> None:
    """SIGSTOP past the lease, then SIGCONT: what it writes then is refused."""
    with open_memory(url) as memory:
        Teller(memory)
        memory.add_experiment(Experiment("r1-x", "r1", None, "seed", "b", 1.0))
    code = f"""
import sys, time
from slipstream.evaluation.pairs import Pair, Stage
from slipstream.memory.store import open_memory
from slipstream.memory.claims import StaleClaimError
memory = open_memory({url!r})
claim = memory.claims.acquire("k", "r1", 1.0)
for index in range(10_000):
    try:
        memory.add_pair("r1-x", Pair(Stage.TEST, index, ("p", "q"), "ABBA", 1.0, 1.0), claim)
    except StaleClaimError as error:
        print("refused", index, flush=True)
        break
    print(index, flush=True)
    time.sleep(0.02)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for _ in range(5):
        process.stdout.readline()
    process.send_signal(19)  # SIGSTOP
    time.sleep(1.5)
    process.send_signal(18)  # SIGCONT
    rest = process.stdout.read().split("\n")
    assert process.wait(timeout=30) == 0
    assert rest[-2].startswith("refused")
    refused = int(rest[-2].split()[1])
    with open_memory(url) as memory:
        assert [p.index for p in memory.evidence("r1-x").pairs] == list(range(refused))
