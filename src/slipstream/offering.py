"""Commands that hand an engine to others."""

import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from .display import print_json, say_plainly, show_rows
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
submission_app = typer.Typer(no_args_is_help=True, help="Folders that a challenge can start.")
app.add_typer(submission_app, name="submission")


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
    from slipstream.evaluation.manifest import complete_model
    from slipstream.evaluation.models import fetch_model, with_drafter
    from slipstream.graph.lineage import find_tree
    from slipstream.kernels.variants import VariantStore
    from slipstream.memory.store import open_memory
    from slipstream.serving.launch import serve_command, visible
    from slipstream.serving.running import passed

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
    model = with_drafter(fetch_model(rules.model, say_plainly), rules.drafter, say_plainly)
    if tree.serves:
        complete_model(tree, rules.model, model)
    command = serve_command(tree, where, model, options, unsafe_local=unsafe_local)
    given = passed() if tree.serves else os.environ  # what an agent wrote sees no key
    os.execve(command[0], command, {**given, **visible(rules.device)})


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
    from slipstream.evaluation.manifest import complete_model
    from slipstream.evaluation.models import fetch_model, with_drafter
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
        manifest = make_manifest(tree, rules)
        story = tell(store, tree.id, tree.settings, rules, manifest)
    model = None
    if manifest["model_id"] == "model":
        model = with_drafter(fetch_model(rules.model, say), rules.drafter, say)
    if tree.serves and model is not None:
        complete_model(tree, rules.model, model)
    found = write(tree, rules, model, folder.absolute(), story, say)
    show_rows([{**asdict(found), "folder": str(found.folder)}], as_json)


@submission_app.command("bench")
def bench_submission(
    folder: Annotated[Path, typer.Argument(help="With manifest.json.")],
    into: Annotated[Path, typer.Option("--out", help="Where the artifacts go.")] = Path("bench"),
    challenge: ChallengeOption = DEFAULT_CHALLENGE,
    prompts: Annotated[int | None, typer.Option(min=1, help="How many prompts.")] = None,
    output_len: Annotated[int | None, typer.Option(min=2, help="Tokens of each answer.")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Passes over all prompts.")] = 3,
    here: Annotated[
        bool, typer.Option("--here", help="Run it with this Python instead of its dependencies.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Measure a submission over HTTP as the challenge does: speed, tokens, perplexity, identity."""
    from slipstream.evaluation.challenge import load_challenge
    from slipstream.evaluation.manifest import make_environment, read_manifest
    from slipstream.serving.artifacts import Plan, write_artifacts
    from slipstream.serving.artifacts import bench_submission as measure

    rules, manifest = load_challenge(challenge), read_manifest(folder)
    plan = Plan(
        prompts or rules.workload.num_prompts, output_len or rules.workload.num_tokens, repeats
    )
    say = (lambda _: None) if as_json else say_plainly
    programs = Path(sys.executable).parent if here else make_environment(manifest, say, folder)
    into.mkdir(parents=True, exist_ok=True)
    found = measure(folder, rules, plan, programs, into / "server.log", say)
    write_artifacts(found, into)
    flat = {**found.summary, **found.summary.get("identity", {}), "artifacts": str(into)}
    flat.pop("identity", None)
    if as_json:
        print_json(flat)
    else:
        show_rows([{"": name, "value": value} for name, value in flat.items()], as_json=False)
