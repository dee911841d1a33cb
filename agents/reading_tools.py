"""Tools that read an engine's source, for whoever plans with it or edits it."""

from pydantic import Field

from .desk import MAX_SHOWN, Desk
from .quoting import quote
from .tools import Arguments

_SLACK = 500  # what a desk adds to what it shows


class ListFiles(Arguments):
    """List the engine's files."""


class ReadFile(Arguments):
    """Read lines of a file."""

    path: str
    first: int = Field(1, ge=1)
    count: int = Field(250, ge=1, le=600)


class Search(Arguments):
    """Find the lines that hold a text, in one file or in all."""

    text: str = Field(min_length=1, max_length=300)
    path: str = ""


READING_TOOLS: dict[str, type[Arguments]] = {
    "list_files": ListFiles,
    "read_file": ReadFile,
    "search": Search,
}


def read(desk: Desk, asked: Arguments) -> str:
    """Return what one of these tools says.

    Raises:
        DeskError: there is no such file, or nothing to search for.
    """
    match asked:
        case ReadFile():
            shown = desk.read(asked.path, asked.first, asked.count)
            return quote(shown, asked.path, MAX_SHOWN + _SLACK)
        case Search():
            found = desk.search(asked.text, asked.path)
            return quote(found, "the engine's source", MAX_SHOWN + _SLACK)
    return desk.list_files()
