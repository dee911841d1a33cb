"""Stations on a Ray cluster: one actor for each place, on whatever node has room for it.

A lost actor, worker process or node raises `WorkerLostError`; the next question starts another
actor, elsewhere if need be. What the lost one had told is written down already, by whoever asked.
"""

import contextlib
import logging
from typing import Any

from .errors import SlipstreamError, WorkerLostError
from .site import Site, look_around
from .station import Answer, Assignment, Make, Station

_ROOM_TIMEOUT_S = 60.0  # for a node to come back


def join(address: str) -> Any:
    """Connect to a cluster, and return the ray module.

    Args:
        address: "auto" or empty for the one on this machine, or as `ray.init` takes it.

    Raises:
        SlipstreamError: Ray isn't installed, or there is no cluster.
    """
    try:
        import ray
    except ModuleNotFoundError as error:
        raise SlipstreamError(
            "executor ray: Ray is not installed; pip install 'slipstream-llm[cluster]'"
        ) from error
    if not ray.is_initialized():
        try:
            ray.init(address=address or "auto", log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, ValueError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[0]
            raise SlipstreamError(
                f"executor ray: no cluster at {address or 'auto'}: {reason}; `ray start --head` "
                "starts one here, `--executor ray:HOST:PORT` names another"
            ) from error
    return ray


def room(device: str, address: str = "") -> int:
    """Return how many places a cluster has: its GPUs, or its nodes where none is needed.

    On a CPU a measurement takes all cores, so a node is one place. Places that somebody else is at
    are among them.

    Raises:
        SlipstreamError: there is no cluster, or no GPU in it.
    """
    ray = join(address)
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if device == "cpu":
        return len(alive)
    gpus = int(sum(resources.get("GPU", 0) for resources in alive))
    if not gpus:
        raise SlipstreamError("executor ray: no node of the cluster has a GPU")
    return gpus


def look_at(device: str, address: str = "") -> Site:
    """Return what machine one of the cluster's places is.

    Raises:
        SlipstreamError: there is no cluster, or no place is free.
    """
    ray = join(address)
    task = ray.remote(look_around).options(**_resources(ray, device))
    try:
        found: Site = ray.get(task.remote(device), timeout=_ROOM_TIMEOUT_S)
    except ray.exceptions.RayError as error:
        raise SlipstreamError(
            f"executor ray: no place of the cluster was free within {_ROOM_TIMEOUT_S:.0f} s"
        ) from error
    return found


class RayLine:
    """A station in an actor of its own. Satisfies `Line`.

    Args:
        make: opens its evaluator, if not a bench for the challenge.
        resources: what Ray is to reserve for it, if not what the challenge's device needs.
    """

    def __init__(
        self,
        assignment: Assignment,
        *,
        address: str = "",
        make: Make | None = None,
        resources: dict[str, Any] | None = None,
    ) -> None:
        self._ray = join(address)
        wanted = resources or _resources(self._ray, assignment.challenge["device"])
        self._actor = self._ray.remote(Station).options(**wanted).remote(assignment, make)
        try:
            self._ray.get(self._actor.__ray_ready__.remote(), timeout=_ROOM_TIMEOUT_S)
        except self._ray.exceptions.RayError as error:
            self._kill()
            raise _lost(error) from error

    def ask(self, method: str, *arguments: Any) -> Answer:
        """Put one question to the station.

        Raises:
            WorkerLostError: its actor is gone: process, node, or the way to it.
        """
        errors = self._ray.exceptions
        try:
            answer: Answer = self._ray.get(self._actor.ask.remote(method, *arguments))
        except (errors.RayActorError, errors.ObjectLostError, errors.NodeDiedError) as error:
            raise _lost(error) from error
        return answer

    def close(self) -> None:
        """Have the actor end; its engines end with it."""
        if self._ray.is_initialized():
            with contextlib.suppress(self._ray.exceptions.RayError, TimeoutError):
                self._ray.get(self._actor.close.remote(), timeout=15.0)
        self._kill()

    def _kill(self) -> None:
        # Whoever has left the cluster has no actors there, and `ray.kill` would join it again.
        if self._ray.is_initialized():
            with contextlib.suppress(self._ray.exceptions.RayError):
                self._ray.kill(self._actor)


def _lost(error: Exception) -> WorkerLostError:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    errors = [line for line in lines if line.partition(":")[0].endswith("Error")]
    reason = (errors[-1:] or lines[:1] or [type(error).__name__])[0]
    return WorkerLostError(f"a worker of the cluster was lost ({reason})")


def _resources(ray: Any, device: str) -> dict[str, Any]:
    """Return what one place reserves: a GPU, or all cores of a node."""
    if device == "cuda":
        return {"num_gpus": 1, "num_cpus": 1, "scheduling_strategy": "SPREAD"}
    cores = [node["Resources"].get("CPU", 1) for node in ray.nodes() if node["Alive"]]
    return {"num_cpus": min(cores), "scheduling_strategy": "SPREAD"}
