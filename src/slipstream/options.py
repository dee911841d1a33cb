"""Options that several commands share."""

from collections.abc import Sequence
from typing import Annotated

import typer

from slipstream.evaluation.errors import SlipstreamError
from slipstream.kernels.seeds import server_names

DEFAULT_CHALLENGE = "smollm2-cpu"
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for a script.")]
MemoryUrl = Annotated[
    str | None,
    typer.Option(
        "--memory", help="sqlite:///FILE or postgresql+psycopg://…", envvar="SLIPSTREAM_MEMORY"
    ),
]
UnsafeLocal = Annotated[
    bool,
    typer.Option(
        "--unsafe-local",
        help="Run changed source even where no sandbox starts; written on its findings.",
    ),
]
WhoseMachine = Annotated[
    str, typer.Option("--executor", help="Of the machine behind it, if not this one: like run's.")
]
ChallengeName = Annotated[str, typer.Argument(help="A challenge's name, or the path of its TOML.")]
VariantOrSeed = Annotated[
    str,
    typer.Argument(
        help="A variant, `seed`, or a server that ships: llama-cpp, transformers, vllm."
    ),
]
SeedLevers = Annotated[
    list[str] | None, typer.Argument(help="On what ships: levers to pull, like step=native.")
]
Since = Annotated[
    str, typer.Option(help="How long ago: 30m, 12h, 7d; or a date like 2026-11-22 (UTC).")
]
ChallengeOption = Annotated[str, typer.Option("--challenge", help="Whose workload.")]
Limit = Annotated[int, typer.Option(min=1, help="At most this many.")]


def read_levers(variant: str, levers: Sequence[str] | None) -> dict[str, str]:
    """Return the settings that NAME=VALUE arguments name.

    Raises:
        SlipstreamError: an argument of another form, or levers of a variant that has its own.
    """
    if levers and variant not in ("seed", *server_names()):
        raise SlipstreamError(f"levers {levers}: a variant has its own; pull levers on `seed`")
    wrong = [lever for lever in levers or () if lever.count("=") != 1]
    if wrong:
        raise SlipstreamError(f"lever {wrong[0]!r}: write NAME=VALUE, like step=native")
    return dict(lever.split("=") for lever in levers or ())
