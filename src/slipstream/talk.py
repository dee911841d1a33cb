"""Commands that talk on the board, in the name of whoever is logged in."""

import getpass
import re
from dataclasses import asdict
from typing import Annotated

import typer

from .common import opened, print_posts, seconds
from .display import out, print_json
from .options import AsJson, Limit, MemoryUrl, Since

app = typer.Typer()


@app.command()
def board(
    channel: Annotated[str | None, typer.Option(help="Only this topic.")] = None,
    thread: Annotated[str | None, typer.Option(help="A post and what replies to it.")] = None,
    since: Since = "",
    limit: Limit = 20,
    memory: MemoryUrl = None,
    as_json: AsJson = False,
) -> None:
    """Read the board, the newest post first."""
    from slipstream.memory.board import Board

    with opened(memory) as store:
        wall = Board(store.database, _user())
        posts = (
            wall.thread(thread)
            if thread
            else wall.posts(channel=channel, since=seconds(since), limit=limit)
        )
    if as_json:
        print_json([asdict(post) for post in posts])
    else:
        print_posts(posts)


@app.command()
def post(
    text: str,
    channel: Annotated[str, typer.Option(help="A topic.")] = "general",
    reply_to: Annotated[str | None, typer.Option(help="The id of a post.")] = None,
    memory: MemoryUrl = None,
    as_json: AsJson = False,
) -> None:
    """Say something on the board, in your own name; @name puts it into somebody's inbox."""
    from slipstream.memory.board import Board

    with opened(memory) as store:
        said = Board(store.database, _user()).post(text, channel=channel, reply_to=reply_to)
    if as_json:
        print_json(asdict(said))
    else:
        out.print(f"{said.id} by {said.author} in {said.channel}")


@app.command()
def inbox(
    since: Since = "", limit: Limit = 20, memory: MemoryUrl = None, as_json: AsJson = False
) -> None:
    """Read what mentions you or replies to you."""
    from slipstream.memory.board import Board

    with opened(memory) as store:
        posts = Board(store.database, _user()).inbox(since=seconds(since), limit=limit)
    if as_json:
        print_json([asdict(post) for post in posts])
    else:
        print_posts(posts)


def _user() -> str:
    """Return the name that posts from this command line are stamped with: the system's."""
    return re.sub(r"[^A-Za-z0-9._:-]", "-", getpass.getuser()).lstrip("._:-")[:64] or "somebody"
