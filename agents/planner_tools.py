"""The planner's tools: what it can look up, and the form in which it proposes."""

from typing import Annotated, Literal

from pydantic import Field

from .reading_tools import READING_TOOLS
from .tools import Arguments


class Idea(Arguments):
    """One falsifiable hypothesis."""

    kind: Literal["levers", "edit"] = Field(description="set levers only, or edit source as well")
    levers: dict[str, str] = Field(
        default_factory=dict, description="levers that change, with their new values"
    )
    files: list[Annotated[str, Field(max_length=200)]] = Field(
        default_factory=list, max_length=8, description="of an edit: the files that it touches"
    )
    mechanism: str = Field(
        min_length=20, max_length=1200, description="what changes, and why decoding gets faster"
    )
    arithmetic: str = Field(
        min_length=5, max_length=500, description="the bytes or microseconds that it saves"
    )
    predicted_gain: float = Field(
        gt=-0.9, lt=20, description="expected speed over the champion's, minus one: 0.1 is +10 %"
    )
    risk: str = Field(min_length=3, max_length=400, description="what it may break")
    falsifier: str = Field(
        min_length=5, max_length=400, description="what would show that the mechanism is wrong"
    )


class Propose(Arguments):
    """Hand in your hypotheses, the best first."""

    ideas: list[Idea] = Field(min_length=1, max_length=8)


class SearchFindings(Arguments):
    """Search what was learned in earlier experiments; all words have to occur."""

    words: str = Field(min_length=1, max_length=200)


PLANNER_TOOLS: dict[str, type[Arguments]] = {
    "search_findings": SearchFindings,
    **READING_TOOLS,
    "propose": Propose,
}
