"""Fresh prompts: the project's own, with their numbers, names and dates drawn anew.

A prompt that nobody has seen can't be answered from a store of answers. What stays is the task, its
length and its kind, so that the workload is the same from run to run.
"""

import calendar
import random
import re

_NAMES = (
    "Ana",
    "Petra",
    "Milo",
    "Jonas",
    "Ines",
    "Tomas",
    "Lena",
    "Viktor",
    "Mara",
    "Oskar",
    "Nadia",
    "Felix",
    "Greta",
    "Pavel",
    "Selma",
    "Hugo",
    "Ida",
    "Anton",
    "Clara",
    "Emil",
    "Rosa",
    "Karim",
    "Livia",
    "Matteo",
    "Nora",
    "Rafael",
    "Sofia",
    "Theo",
    "Wanda",
    "Yusuf",
    "Amira",
    "Bruno",
)
_WEEKDAYS = tuple(calendar.day_name)
_MONTHS = tuple(calendar.month_name)[1:]
_OPENINGS = (
    "For reference {number}, {weekday}.",
    "{name} asked me this on {weekday}.",
    "Ticket {number}, opened by {name}.",
    "Written on {weekday} for {name}.",
    "Item {number} of {name}'s list.",
)
_NUMBER = re.compile(r"(?<![\w.])[1-9]\d{1,3}(?![\w.]*\d)")


def vary(text: str, rng: random.Random) -> str:
    """Return `text` with other numbers, names and dates, and a line of its own in front."""
    names = dict(zip(_NAMES, rng.sample(_NAMES, len(_NAMES)), strict=True))
    weekdays = dict(zip(_WEEKDAYS, rng.sample(_WEEKDAYS, 7), strict=True))
    months = dict(zip(_MONTHS, rng.sample(_MONTHS, 12), strict=True))
    swaps = names | weekdays | months
    words = re.compile(rf"\b({'|'.join(swaps)})\b")
    numbers: dict[str, str] = {}  # a number that recurs stays one number

    def other(match: re.Match[str]) -> str:
        old = match.group()
        low = 10 ** (len(old) - 1)
        return numbers.setdefault(old, str(rng.randrange(low, 10 * low)))

    opening = rng.choice(_OPENINGS).format(
        number=rng.randrange(1000, 10_000), name=rng.choice(_NAMES), weekday=rng.choice(_WEEKDAYS)
    )
    return f"{opening} {_NUMBER.sub(other, words.sub(lambda m: swaps[m.group()], text))}"
