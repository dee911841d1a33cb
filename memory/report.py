"""A run's report: Markdown for people, an SVG chart beside it."""

from pathlib import Path

from .chart import progress_chart
from .leaderboard import Standing, leaderboard
from .records import Experiment, Run, is_edit
from .store import Memory


def write_report(memory: Memory, run: Run, folder: Path) -> Path:
    """Write `report.md` and `progress.svg` into `folder`; return the report's path."""
    folder.mkdir(parents=True, exist_ok=True)
    progress_chart(memory, run).save(folder / "progress.svg")
    path = folder / "report.md"
    path.write_text(report_text(memory, run))
    return path


def report_text(memory: Memory, run: Run) -> str:
    """Return the report as Markdown."""
    standings = leaderboard(memory, run.challenge, run.machine)
    lines = [f"# {run.challenge}, run {run.id}", ""]
    lines += [f"- Machine: {run.machine_label}", f"- State: {run.state}, {_minutes(run)} minutes"]
    if run.bandwidth_gbps:
        lines.append(f"- Memory reads at {run.bandwidth_gbps:.1f} GB/s")
    if run.delta is not None:
        lines.append(f"- Noise floor of the test design, from an A/A test: {run.delta:.2%}")
    if run.unsafe:
        lines.append("- **Run with --unsafe-local: the findings say what ran without a sandbox**")
    if standings and standings[0].verdict == "kept":
        lines += ["", "## Champion", "", _champion(standings[0])]
    lines += ["", "![Every experiment a dot, the champion a staircase](progress.svg)", ""]
    lines += ["## Leaderboard", "", *_table(standings), "", "## Experiments", ""]
    for experiment in memory.experiments(run=run.id):
        if experiment.variant == experiment.rival:
            continue  # an A/A test: its outcome is the noise floor above
        verdict = experiment.verdict or "not judged yet"
        lines.append(f"### {experiment.id}: {verdict}")
        lines.append("")
        lines += [_idea(memory, experiment), ""]
        lines += [f"Seen: {experiment.reason or 'nothing yet'}.", ""]
        for seen in memory.observations(experiment.id):
            lines += [f"- {seen.kind}, {seen.subject}: {seen.text}", ""]
    return "\n".join(lines)


def _idea(memory: Memory, experiment: Experiment) -> str:
    if not experiment.hypothesis:
        return f"`{experiment.variant}` against {experiment.rival}."
    idea = memory.hypothesis(experiment.hypothesis)
    what = idea.target if is_edit(idea) else idea.lever
    text = (
        f"{what} on `{idea.parent}` → `{experiment.variant}`, predicted "
        f"{idea.predicted_gain:+.1%}: {idea.mechanism}."
    )
    return f"{text} Would be refuted by: {idea.falsifier}." if idea.falsifier else text


def _champion(standing: Standing) -> str:
    settings = ", ".join(f"{name}={value}" for name, value in sorted(standing.settings.items()))
    text = f"`{standing.variant}`: {settings}"
    if standing.speedup and standing.speedup_low and standing.speedup_high:
        text = (
            f"**{standing.speedup:.2f}× {standing.baseline}** "
            f"(95 % interval {standing.speedup_low:.2f} to {standing.speedup_high:.2f}). {text}"
        )
    return text


def _table(standings: list[Standing]) -> list[str]:
    rows = ["| variant | verdict | tokens/s | speed-up | 95 % interval | PPL rise | why |"]
    rows.append("| --- | --- | --- | --- | --- | --- | --- |")
    for s in standings:
        speedup = f"{s.speedup:.2f}×" if s.speedup else "–"
        interval = f"{s.speedup_low:.2f}–{s.speedup_high:.2f}" if s.speedup_high else "–"
        tps = f"{s.tps:.1f}" if s.tps else "–"
        rise = f"{s.ppl_rise:+.2%}" if s.ppl_rise is not None else "–"
        reason = s.reason.replace("|", "\\|")
        row = (f"`{s.variant}`", s.verdict, tps, speedup, interval, rise, reason)
        rows.append(f"| {' | '.join(row)} |")
    return rows


def _minutes(run: Run) -> str:
    return f"{run.spent_s / 60:.1f}"
