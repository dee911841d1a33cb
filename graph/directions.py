"""What the researcher wants of a run, read anew before each plan: program.md and `steer`."""

from pathlib import Path

from slipstream.memory.steering import directions

from .context import LoopContext

_MAX = 6000
TEMPLATE = """<!-- Directions for this run's planner. Edit this file at any time: it is read before
     each plan. What stands in comments like this one is not passed on. -->
"""


def directions_of(context: LoopContext) -> tuple[str, ...]:
    """Return what the program says, then what `slipstream steer` said since, oldest first."""
    said = [one.text for one in directions(context.memory.database, context.run)]
    return tuple(text for text in (read_program(context.program), *said) if text)


def read_program(path: Path) -> str:
    """Return a program's text without its comments; empty if there is none."""
    try:
        text = path.read_text(errors="replace")
    except OSError:
        return ""
    while "<!--" in text:
        head, _, rest = text.partition("<!--")
        text = head + rest.partition("-->")[2]
    return text.strip()[:_MAX]
