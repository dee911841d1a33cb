"""A challenge: what is optimised, under which rules. One TOML file, validated when read."""

import tomllib
from enum import StrEnum
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .errors import SlipstreamError

CHALLENGES = Path(__file__).resolve().parent.parent / "challenges"


class Tier(StrEnum):
    """How much quality a variant may give up. The gates are in `gates.py`."""

    EXACT = "exact"
    NEAR_LOSSLESS = "near-lossless"
    CHALLENGE = "challenge"


MOST_SCREEN_PAIRS = 16  # a deck of prompts has room for as many, before the test begins


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Workload(_Strict):
    """What an engine is timed on."""

    prompts: Literal["general", "random-ids"] = "general"
    num_tokens: int = Field(96, ge=8, le=4096, description="new tokens per timed block")
    prompt_tokens: int = Field(128, ge=1, description="length of a random-ids prompt")
    num_prompts: int = Field(24, ge=4, le=1024, description="prompts per split")
    concurrency: Literal[1] = 1
    max_context: int = Field(2048, ge=64, le=131_072)


class Quality(_Strict):
    """How the reference is asked, and by how many documents a variant is scored."""

    enabled: bool = True
    documents: int = Field(24, ge=4, le=1024, description="scored documents per split")
    continuation_tokens: int = Field(48, ge=8, le=4096)
    seed: int = Field(20260622, description="seed of the sampled public ground truth")
    held_out: Literal["rotating", "fixed"] = Field(
        "rotating", description="held-out ground truth: from a secret seed that changes each month"
    )
    reference_dtype: Literal["float32", "bfloat16"] = "float32"


class Acceptance(_Strict):
    """Numbers of pairs per stage, and the level of the one-sided paired test."""

    screen_pairs: int = Field(3, ge=2, le=MOST_SCREEN_PAIRS)
    test_pairs: int = Field(8, ge=4)
    confirm_pairs: int = Field(12, ge=4)
    noise_pairs: int = Field(6, ge=4)
    baseline_pairs: int = Field(6, ge=3)
    p_value: float = Field(0.01, gt=0, lt=0.5)
    min_gain: float = Field(0.003, ge=0, description="least gain worth keeping, as a log ratio")
    looks: int = Field(3, ge=1, le=5, description="pairs of a test may double looks - 1 times")
    audit_blocks: int = Field(6, ge=0, description="timed blocks audited per stage")
    max_disturbance: float = Field(
        0.25, gt=0, description="share of all cores that others may use before a pair is void"
    )
    calibration_minutes: float = Field(60.0, gt=0, description="how long an A/A test holds")
    reverify_every: int = Field(4, ge=1, description="promotions until the baseline is raced again")


class Budget(_Strict):
    """What a run may spend unless told otherwise."""

    minutes: float = Field(14.0, gt=0)
    experiments: int = Field(12, ge=1)


class JobTerms(_Strict):
    """What jobs on rented machines may take, where measurements are such jobs."""

    timeout_minutes: float = Field(20.0, gt=0, description="of one job")
    per_day: int = Field(20, ge=1, description="jobs of the account within 24 hours")
    namespace: str = Field("", description="who pays; empty for whom the token belongs to")
    bucket: str = Field("slipstream-errands", pattern=r"^[\w.-]+$")
    screen_here: bool = Field(
        True, description="race variants on this machine first, if it has such a device"
    )


class Challenge(_Strict):
    """One challenge file."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    title: str
    model: str
    device: Literal["cpu", "cuda"]
    gpu: str | None = None
    tier: Tier = Tier.NEAR_LOSSLESS
    protocol: Literal[1] = 1
    drafter: str = Field(
        "", description="URI of what guesses tokens for the model: a smaller one, or its assistant"
    )
    baseline: Literal["transformers-bf16", "transformers-fp32"] = "transformers-bf16"
    engine: str = Field(
        "", description="where a run starts: empty for the shipped engine, a served one's name"
    )
    executor: str = Field(
        "", description="where measurements run: empty for this machine, `ray`, `hf-jobs`"
    )
    workload: Workload = Workload()
    quality: Quality = Quality()
    acceptance: Acceptance = Acceptance()
    budget: Budget = Budget()
    jobs: JobTerms = JobTerms()


def challenge_names() -> list[str]:
    """Return the names of the challenges that ship."""
    return sorted(path.stem for path in CHALLENGES.glob("*.toml"))


def load_challenge(name_or_path: str) -> Challenge:
    """Load a shipped challenge by name, or any by the path of its TOML file.

    Raises:
        SlipstreamError: unknown name, unreadable TOML, or a field that isn't valid.
    """
    path = Path(name_or_path)
    if path.suffix != ".toml":
        path = CHALLENGES / f"{name_or_path}.toml"
    if not path.is_file():
        valid = ", ".join(challenge_names())
        raise SlipstreamError(
            f"unknown challenge {name_or_path!r}: use one of {valid}, or a path to a .toml file"
        )
    return parse_challenge(path.read_text(), source=str(name_or_path))


def parse_challenge(text: str, *, source: str) -> Challenge:
    """Validate the text of a challenge file.

    Raises:
        SlipstreamError: with the first field that is wrong and what would be valid.
    """
    try:
        return Challenge.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise SlipstreamError(f"challenge {source}: not readable as TOML: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            valid = ", ".join(_fields_beside(first["loc"]))
            raise SlipstreamError(
                f"challenge {source}: unknown field {field!r}; valid here: {valid}"
            ) from error
        given = "" if first["type"] == "missing" else f", got {first['input']!r}"
        raise SlipstreamError(f"challenge {source}: {field}: {first['msg']}{given}") from error


def _fields_beside(loc: tuple[int | str, ...]) -> list[str]:
    """Return the valid field names at the level where `loc` points."""
    model: type[BaseModel] = Challenge
    for part in loc[:-1]:
        annotation = model.model_fields[str(part)].annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            model = annotation
    return sorted(model.model_fields)
