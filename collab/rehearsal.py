"""What a run would submit, and what that may cost, without a token and without submitting it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from slipstream.evaluation.challenge import Challenge
from slipstream.evaluation.models import fetch_config
from slipstream.kernels.catalogue import Catalogue
from slipstream.kernels.census import ModelShape, read_shape
from slipstream.kernels.levers import Machine

from .flavors import find_flavor
from .hub import IMAGE, refuse_drafter, start_script, volumes

_USUAL_SHARE = 0.25  # of the ceiling, for an engine that nobody has tuned yet
_BLOCKS = 4  # of a pair


@dataclass(frozen=True)
class Rehearsal:
    """What would happen.

    Attributes:
        jobs: one for the start, one for each experiment, one for the verification; a noise test
            that expires takes another, and so does a job that fails.
        minutes_per_job: of a whole experiment, at the ceiling's speed and at a quarter of it.
        levers: what each lever alone reads for a token, and the speed that it can't exceed there.
        job: the fields of a job as they would be posted.
    """

    challenge: str
    flavor: str
    gpu: str
    gbps: float
    jobs: int
    usd_per_job: float
    usd: float
    hours: float
    minutes_per_job: tuple[float, float]
    timeout_minutes: float
    per_day: int
    levers: list[dict[str, Any]]
    job: dict[str, Any]


def rehearse(
    challenge: Challenge,
    flavor_name: str,
    catalogue: Catalogue,
    *,
    experiments: int | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Rehearsal:
    """Return what a run of a challenge would submit.

    Raises:
        SlipstreamError: no such flavor, or a model whose sizes nobody here knows.
    """
    flavor, terms = find_flavor(flavor_name), challenge.jobs
    refuse_drafter(challenge)
    shape = read_shape(fetch_config(challenge.model, say))
    levers = _levers(catalogue, shape, Machine(challenge.device, flavor.cores, True), flavor.gbps)
    jobs = (experiments or challenge.budget.experiments) + 2
    rules = challenge.acceptance
    pairs = rules.screen_pairs + rules.test_pairs + rules.confirm_pairs
    seconds = pairs * _BLOCKS * challenge.workload.num_tokens / levers[0]["ceiling_tps"]
    namespace = terms.namespace or "YOU"
    name = "RUN-001-0"
    usd = flavor.usd(60 * terms.timeout_minutes)
    return Rehearsal(
        challenge=challenge.name,
        flavor=flavor.name,
        gpu=flavor.gpu,
        gbps=flavor.gbps,
        jobs=jobs,
        usd_per_job=usd,
        usd=jobs * usd,
        hours=jobs * terms.timeout_minutes / 60,
        minutes_per_job=(seconds / 60, seconds / 60 / _USUAL_SHARE),
        timeout_minutes=terms.timeout_minutes,
        per_day=terms.per_day,
        levers=levers,
        job={
            "dockerImage": IMAGE,
            "command": ["bash", "-c", start_script()],
            "flavor": flavor.name,
            "timeoutSeconds": round(60 * terms.timeout_minutes),
            "labels": {"slipstream-job": name},
            "volumes": volumes(f"{namespace}/{terms.bucket}", name, challenge.model),
        },
    )


def _levers(
    catalogue: Catalogue, shape: ModelShape, machine: Machine, gbps: float
) -> list[dict[str, Any]]:
    """Return the engine without levers, then each lever that changes what is read.

    One that needs another is shown with it.
    """
    seed = dict(catalogue.seed)
    found = [_row(catalogue, shape, gbps, "none", seed)]
    singles = [
        {name: value}
        for name, lever in catalogue.levers.items()
        for value in lever.values
        if value != seed[name]
    ]
    for single in singles:
        for other in ({}, *singles):
            settings = {**seed, **other, **single}
            if catalogue.refusal(shape, settings, machine) is None:
                alone = catalogue.read_bytes(shape, {**seed, **other})
                if catalogue.read_bytes(shape, settings) != alone:
                    name = ", ".join(f"{k}={v}" for k, v in {**single, **other}.items())
                    found.append(_row(catalogue, shape, gbps, name, settings))
                break
    return found


def _row(
    catalogue: Catalogue, shape: ModelShape, gbps: float, name: str, settings: dict[str, str]
) -> dict[str, Any]:
    read_bytes = catalogue.read_bytes(shape, settings)
    return {
        "lever": name,
        "megabytes": round(read_bytes / 1e6, 1),
        "ceiling_tps": round(gbps * 1e9 / read_bytes, 1),
    }
