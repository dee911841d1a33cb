"""The progress chart: every experiment a dot, the champion a staircase."""

from typing import Any

import altair as alt
import pandas as pd

from .frames import experiments_frame
from .records import Run
from .store import Memory

_COLOURS = {
    "kept": "#1a7f37",
    "rejected": "#cf222e",
    "inconclusive": "#9a6700",
    "invalid": "#8250df",
    "failed": "#57606a",
}


def progress_frame(memory: Memory, run: Run) -> pd.DataFrame:
    """Return one row per judged experiment of a run: number, gain over its champion, speed-up.

    `speedup` chains each kept gain onto the run's measured starting point, so that the staircase
    shows what was believed at the time.
    """
    frame = experiments_frame(memory, run.id)
    if frame.empty:
        return frame
    started = frame[frame["cause"] == "start"]
    races = frame[frame["hypothesis"].notna() & frame["verdict"].notna()].copy()
    speed = dict(zip(started["variant"], started["gain"] + 1.0, strict=True))
    speedups = []
    columns = (races[name] for name in ("variant", "rival", "gain", "verdict"))
    for variant, rival, gain, verdict in zip(*columns, strict=True):
        speedup = speed.get(rival, float("nan")) * (1.0 + float(gain))
        if verdict == "kept":
            speed.setdefault(variant, speedup)
        speedups.append(speedup)
    races["speedup"] = speedups
    races["number"] = range(1, len(races) + 1)
    first = started[~started["id"].str.endswith("-final")].tail(1)
    start = first.assign(number=0, speedup=first["gain"] + 1.0, lever="start")
    return pd.concat([start, races], ignore_index=True)


def progress_chart(memory: Memory, run: Run) -> alt.LayerChart:
    """Return the chart; notebooks show it as it is, `save_svg` writes it to a file."""
    frame = progress_frame(memory, run)
    columns = ["number", "speedup", "verdict", "lever", "reason"]
    frame = frame.reindex(columns=columns)  # all of them, even where nothing was judged yet
    dots = frame.dropna(subset=["speedup"])
    steps = dots[dots["verdict"] == "kept"]
    if not steps.empty:
        last = steps.tail(1).assign(number=frame["number"].max())
        steps = pd.concat([steps, last], ignore_index=True)
    x: Any = alt.X("number:Q", title="experiment", axis=alt.Axis(tickMinStep=1))
    y: Any = alt.Y(
        "speedup:Q", title=f"speed-up over {run.rules['baseline']}", scale=alt.Scale(zero=False)
    )
    colour = alt.Color(
        "verdict:N",
        title=None,
        scale=alt.Scale(domain=list(_COLOURS), range=list(_COLOURS.values())),
    )
    staircase = (
        alt.Chart(steps).mark_line(interpolate="step-after", color="#1a7f37").encode(x=x, y=y)
    )
    points = (
        alt.Chart(dots)
        .mark_circle(size=70, opacity=0.9)
        .encode(x=x, y=y, color=colour, tooltip=["lever:N", "verdict:N", "speedup:Q", "reason:N"])
    )
    names = (
        alt.Chart(steps.head(len(steps) - 1))
        .mark_text(align="left", dx=6, dy=-8, fontSize=10)
        .encode(x=x, y=y, text="lever:N")
    )
    chart: alt.LayerChart = (staircase + points + names).properties(
        width=640, height=320, title=f"{run.challenge}, run {run.id}"
    )
    return chart
