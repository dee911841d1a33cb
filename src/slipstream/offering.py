"""Commands that hand an engine to others."""

import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from .display import say_plainly, show_rows
from .options import (
    DEFAULT_CHALLENGE,
    AsJson,
    ChallengeOption,
    MemoryUrl,
    SeedLevers,
    UnsafeLocal,
    VariantOrSeed,
    read_levers,
)

app = typer.Typer()


@app.command()
def serve(
    variant: VariantOrSeed,
    levers: SeedLevers = None,
    challenge: ChallengeOption = DEFAULT_CHALLENGE,
    host: str = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
    name: Annotated[str | None, typer.Option(help="What clients call it.")] = None,
    max_context: Annotated[
        int, typer.Option(min=2, help="Tokens of a prompt and its answer.")
    ] = 4096,
    unsafe_local: UnsafeLocal = False,
    memory: MemoryUrl = None,
) -> None:
    """Serve a variant to OpenAI clients until Ctrl-C: completions and chat, streamed or whole."""
    from slipstream.evaluation.challenge import load_challenge
    from slipstream.evaluation.home import data_dir
    from slipstream.evaluation.models import fetch_model
    from slipstream.graph.lineage import find_tree
    from slipstream.kernels.variants import VariantStore
    from slipstream.memory.store import open_memory
    from slipstream.serving.launch import serve_command

    rules = load_challenge(challenge)
    variants = VariantStore(data_dir() / "variants")
    with open_memory(memory) as store:
        tree = find_tree(store, variants, variant, read_levers(variant, levers))
    where = variants.add(tree)
    options = {
        "host": host,
        "port": str(port),
        "name": name or rules.name,
        "max-context": str(max_context),
    }
    model = fetch_model(rules.model, say_plainly)
    command = serve_command(tree, where, model, options, unsafe_local=unsafe_local)
    os.execv(command[0], command)


@app.command()
def export(
    variant: VariantOrSeed,
    folder: Annotated[Path, typer.Argument(help="Where to; not there yet, or empty.")],
    levers: SeedLevers = None,
    challenge: ChallengeOption = DEFAULT_CHALLENGE,
    memory: MemoryUrl = None,
    as_json: AsJson = False,
) -> None:
    """Write a variant as a submission that runs without slipstream: manifest, server, engine."""
    from slipstream.evaluation.challenge import load_challenge
    from slipstream.evaluation.home import data_dir
    from slipstream.evaluation.models import fetch_model
    from slipstream.graph.lineage import find_tree
    from slipstream.kernels.variants import VariantStore
    from slipstream.memory.store import open_memory
    from slipstream.serving.export import export as write
    from slipstream.serving.export import make_manifest
    from slipstream.serving.story import tell

    rules, settings = load_challenge(challenge), read_levers(variant, levers)
    say = (lambda _: None) if as_json else say_plainly
    with open_memory(memory) as store:
        tree = find_tree(store, VariantStore(data_dir() / "variants"), variant, settings)
        story = tell(store, tree.id, tree.settings, rules, make_manifest(tree, rules))
    found = write(tree, rules, fetch_model(rules.model, say), folder.absolute(), story, say)
    show_rows([{**asdict(found), "folder": str(found.folder)}], as_json)
