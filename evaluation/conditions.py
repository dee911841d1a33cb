"""The machine while something is timed: other tenants, clocks, temperature, throttling.

An interleaved pair cancels slow drifts, not a neighbour who comes and goes within it. So each pair
is watched; a disturbed one is void, logged, and measured again.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .hardware import ask_gpus, visible_gpus

_CPU = Path("/sys/devices/system/cpu")
_THERMAL = Path("/sys/class/thermal")
_GPU_QUERY = (
    "clocks.sm,temperature.gpu,"
    "clocks_event_reasons.hw_slowdown,clocks_event_reasons.sw_thermal_slowdown"
)


@dataclass(frozen=True)
class Conditions:
    """What was seen; a field that the machine doesn't tell is None.

    Attributes:
        others: share of all cores that other processes used, 0 to 1.
        steal: share of all cores that the hypervisor gave to other guests.
        mhz: mean clock of the cores, or the GPU's SM clock.
        celsius: hottest thermal zone, or the GPU.
        throttled: why the GPU lowers its clocks; empty if it doesn't.
        tenants: other compute processes on the GPU.
    """

    others: float | None = None
    steal: float | None = None
    mhz: float | None = None
    celsius: float | None = None
    throttled: str = ""
    tenants: int | None = None


class Watch:
    """Looks at the machine before and after something is timed.

    Args:
        gpu: look at the GPU too (some 50 ms a look, off the clock).
        max_disturbance: share of all cores that others may use before a pair is void.
    """

    def __init__(self, *, gpu: bool, max_disturbance: float) -> None:
        self._gpu, self._max_disturbance = gpu, max_disturbance
        self._own_s: Callable[[], float] = lambda: 0.0
        self._start = _Jiffies(0, 0)
        self._own_start_s = 0.0
        self._begun = 0.0

    def start(self, own_s: Callable[[], float]) -> None:
        """Begin to watch. `own_s` tells the CPU seconds that the engines have used so far."""
        self._own_s = own_s
        self._start, self._own_start_s, self._begun = _jiffies(), self._used_s(), time.monotonic()

    def stop(self) -> Conditions:
        """Return what was seen since `start`."""
        elapsed = (time.monotonic() - self._begun) * (os.cpu_count() or 1)
        now, own_s = _jiffies(), self._used_s() - self._own_start_s
        ticks = os.sysconf("SC_CLK_TCK")
        busy_s = (now.busy - self._start.busy) / ticks
        others = max(0.0, (busy_s - own_s) / elapsed) if elapsed else 0.0
        steal = (now.steal - self._start.steal) / ticks / elapsed if elapsed else 0.0
        if self._gpu:
            mhz, celsius, throttled = _gpu_state()
            tenants = _gpu_tenants()
            return Conditions(others, steal, mhz, celsius, throttled, tenants)
        return Conditions(others, steal, _cpu_mhz(), _celsius())

    def verdict(self, conditions: Conditions) -> str:
        """Return why what was timed under these conditions is void; empty if it isn't."""
        return disturbance(conditions, self._max_disturbance)

    def _used_s(self) -> float:
        mine = os.times()
        return self._own_s() + mine.user + mine.system


def disturbance(conditions: Conditions, max_disturbance: float) -> str:
    """Return what disturbed something that was timed; empty if nothing did.

    Args:
        max_disturbance: share of all cores that others may use.
    """
    if conditions.throttled:
        return f"the GPU was throttled: {conditions.throttled}"
    if conditions.tenants:
        return f"{conditions.tenants} other processes compute on the GPU"
    taken = (conditions.others or 0.0) + (conditions.steal or 0.0)
    if taken > max_disturbance:
        return f"others used {taken:.0%} of the cores, {max_disturbance:.0%} is allowed"
    return ""


@dataclass(frozen=True)
class _Jiffies:
    busy: int
    steal: int


def _jiffies() -> _Jiffies:
    """Read /proc/stat: user nice system idle iowait irq softirq steal."""
    try:
        with Path("/proc/stat").open() as file:
            values = [int(field) for field in file.readline().split()[1:9]]
    except OSError:  # not Linux, or hidden
        return _Jiffies(0, 0)
    user, nice, system, _, _, irq, softirq, steal = values
    return _Jiffies(user + nice + system + irq + softirq, steal)


def _cpu_mhz() -> float | None:
    values = []
    for path in _CPU.glob("cpu[0-9]*/cpufreq/scaling_cur_freq"):
        try:
            values.append(int(path.read_text()) / 1e3)
        except (OSError, ValueError):
            continue
    return sum(values) / len(values) if values else None


def _celsius() -> float | None:
    values = []
    for path in _THERMAL.glob("thermal_zone*/temp"):
        try:
            values.append(int(path.read_text()) / 1e3)
        except (OSError, ValueError):
            continue
    return max(values, default=None)


def _gpu_state() -> tuple[float | None, float | None, str]:
    fields = [field.strip() for field in _ask_gpu(f"--query-gpu={_GPU_QUERY}").split(",")]
    if len(fields) != 4:
        return None, None, ""
    names = ("hardware slowdown", "thermal slowdown")
    reasons = [n for n, field in zip(names, fields[2:], strict=True) if field == "Active"]
    return float(fields[0]), float(fields[1]), ", ".join(reasons)


def _gpu_tenants() -> int | None:
    """Return how many processes compute on the GPU that this process hasn't started."""
    pids = [int(word) for word in _ask_gpu("--query-compute-apps=pid").split() if word.isdigit()]
    own = [pid for pid in pids if is_descendant(pid)]
    # In some containers the driver tells the host's numbers: then nobody can be told apart.
    return len(pids) - len(own) if own or not pids else None


def is_descendant(pid: int) -> bool:
    """Whether a process is this one, or was started by it or by one of its descendants."""
    while pid > 1:
        if pid == os.getpid():
            return True
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except OSError:
            return False
        pid = int(stat.rpartition(")")[2].split()[1])
    return False


def _ask_gpu(query: str) -> str:
    """Ask about the GPU that engines run on: the first that CUDA shows."""
    visible = visible_gpus()
    return ask_gpus(query, ["0"] if visible is None else visible[:1])
