"""Options that several commands share."""

from typing import Annotated

import typer

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
ChallengeName = Annotated[str, typer.Argument(help="A challenge's name, or the path of its TOML.")]
Since = Annotated[
    str, typer.Option(help="How long ago: 30m, 12h, 7d; or a date like 2026-11-22 (UTC).")
]
ChallengeOption = Annotated[str, typer.Option("--challenge", help="Whose workload.")]
Limit = Annotated[int, typer.Option(min=1, help="At most this many.")]
