"""Tells when a GPU has nothing left to do: stopping a process doesn't stop what it has queued.

A trusted process of its own beside the engines, started as a file in isolated mode; it imports the
standard library only and speaks to the driver through ctypes. It launches an empty kernel and waits
for it. Kernels of different processes take turns on a GPU, so while another process has work there,
the empty kernel waits for its turn; on an idle GPU it takes some microseconds.

The first message on the socket is an 8-byte double: seconds that the empty kernel takes on the idle
GPU. Then one byte is a question, answered with an 8-byte double: seconds until the GPU was idle, or
NaN if it wasn't within the time limit.
"""

import ctypes
import math
import socket
import struct
import sys
import time

_PTX = b"""
.version 7.0
.target sm_70
.address_size 64
.visible .entry nothing() { ret; }
"""
_PROBES = 12  # in a row: one may slip in between two turns of somebody else
_SLOWER = 4.0  # than on the idle GPU
_FIRST_PROBES = 200
_BUSY_S = 150e-6  # an idle GPU takes 5 to 50 µs; another process' turn takes milliseconds


class Gpu:
    """One CUDA context with an empty kernel."""

    def __init__(self, device: int) -> None:
        self._cuda = ctypes.CDLL("libcuda.so.1")
        handle, context, module = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_void_p()
        self._kernel = ctypes.c_void_p()
        self._do("cuInit", 0)
        self._do("cuDeviceGet", ctypes.byref(handle), device)
        self._do("cuDevicePrimaryCtxRetain", ctypes.byref(context), handle)
        self._do("cuCtxSetCurrent", context)
        self._do("cuModuleLoadData", ctypes.byref(module), _PTX)
        self._do("cuModuleGetFunction", ctypes.byref(self._kernel), module, b"nothing")

    def probe(self) -> float:
        """Return how many seconds the empty kernel takes."""
        begun = time.perf_counter()
        self._do("cuLaunchKernel", self._kernel, 1, 1, 1, 1, 1, 1, 0, None, None, None)
        self._do("cuCtxSynchronize")
        return time.perf_counter() - begun

    def _do(self, name: str, *arguments: object) -> None:
        status = getattr(self._cuda, name)(*arguments)
        if status:
            raise OSError(f"{name}: CUDA error {status}")


def wait_until_idle(gpu: Gpu, usual_s: float, timeout_s: float) -> float:
    """Return the seconds until the GPU was idle, or NaN."""
    begun = time.perf_counter()
    busy_until, quick = begun, 0
    while quick < _PROBES:
        taken_s = gpu.probe()
        now = time.perf_counter()
        quick += 1
        if taken_s > _SLOWER * usual_s:
            busy_until, quick = now, 0
        if now - begun > timeout_s:
            return math.nan
    return busy_until - begun


def usual(gpu: Gpu) -> float:
    """Return how many seconds the empty kernel takes on this GPU when it is idle.

    The tenth part of the probes that is quickest: a neighbour who comes and goes makes others slow,
    and a baseline that was too slow would take a busy GPU for an idle one.

    Raises:
        OSError: the GPU is busy all the time.
    """
    probes_s = sorted(gpu.probe() for _ in range(_FIRST_PROBES))
    usual_s = probes_s[_FIRST_PROBES // 10]
    if usual_s > _BUSY_S:
        raise OSError(
            f"an empty kernel takes {1e6 * usual_s:.0f} µs, so other processes compute on it"
        )
    return usual_s


def main() -> None:
    """Arguments: socket, device, time limit in seconds."""
    sock = socket.socket(fileno=int(sys.argv[1]))
    gpu, timeout_s = Gpu(int(sys.argv[2])), float(sys.argv[3])
    usual_s = usual(gpu)
    sock.sendall(struct.pack(">d", usual_s))
    while sock.recv(1):
        sock.sendall(struct.pack(">d", wait_until_idle(gpu, usual_s, timeout_s)))


if __name__ == "__main__":
    main()
