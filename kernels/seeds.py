"""Where a run starts: the shipped engine, a served engine that ships, or a folder of somebody's.

A served engine is a folder with `manifest.json`, whose command starts a server behind the
challenge's contract (`servers/contract.py` has one for engines that live in Python). What it may be
set to is in its `levers.toml`; the settings themselves lie beside it, in `levers.json`.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any

from .catalogue import ENGINE, SHIPPED, Catalogue, read_catalogue
from .variants import LEVERS, MANIFEST, MAX_TREE, Tree, read_tree, seed_tree

SERVERS = Path(__file__).resolve().parent / "servers"
_CONTRACT = "contract.py"


def server_names() -> list[str]:
    """Return the served engines that ship."""
    folders = SERVERS.iterdir()
    return sorted(f.name.replace("_", "-") for f in folders if (f / MANIFEST).is_file())


@cache
def seed_server(name: str) -> Tree:
    """Return a served engine that ships, with no lever pulled."""
    folder = SERVERS / name.replace("-", "_")
    contract = (SERVERS / _CONTRACT).read_bytes()
    return _with_settings(Tree({_CONTRACT: contract, **read_tree(folder).files}))


def read_seed(folder: Path) -> Tree:
    """Read somebody's served engine.

    Raises:
        ValueError: one line on what is wrong.
    """
    if not (folder / MANIFEST).is_file():
        raise ValueError(f"no {MANIFEST} in {folder}")
    tree = read_tree(folder)
    size = sum(len(content) for content in tree.files.values())
    if size > MAX_TREE:
        raise ValueError(
            f"{folder} holds {size:,} bytes, limit {MAX_TREE:,}; weights belong into the "
            "challenge's model, not beside the server"
        )
    return _with_settings(tree)


def seed_of(name: str) -> Tree | None:
    """Return the seed of this name: empty for the shipped engine; None if none ships."""
    if not name:
        return seed_tree(SHIPPED.seed)
    return seed_server(name) if name in server_names() else None


def catalogue_of(tree: Tree) -> Catalogue:
    """Return the levers that a tree's engine has.

    Raises:
        ValueError: one line on what is wrong.
    """
    if not tree.serves:
        return SHIPPED
    try:
        name = json.loads(tree.files[MANIFEST])["name"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{MANIFEST}: no name in it") from error
    return read_catalogue(str(name), tree.files.get("levers.toml", b"").decode())


def remade(settings: dict[str, str]) -> Tree:
    """Return the tree that these settings make of what ships, if it is one of those at all."""
    name = settings.get(ENGINE, "")
    if name in server_names():
        return seed_server(name).with_settings(settings)
    return seed_tree(settings)


def _with_settings(tree: Tree) -> Tree:
    catalogue = catalogue_of(tree)
    given: Any = json.loads(tree.files[LEVERS]) if LEVERS in tree.files else {}
    if not isinstance(given, dict):
        raise ValueError(f"{LEVERS}: not a table of levers and values")
    if wrong := catalogue.unknown(given):
        raise ValueError(f"{LEVERS}: {wrong}")
    return tree.with_settings({**catalogue.seed, **given})
