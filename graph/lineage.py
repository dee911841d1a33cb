"""A variant's tree and its ancestors', on a machine where they may never have been made.

Memory can be shared, trees lie on the machine that made them. One with the shipped source follows
from its settings; another one has to be imported.
"""

from slipstream.evaluation.errors import SlipstreamError
from slipstream.kernels.levers import SEED_SETTINGS
from slipstream.kernels.variants import Tree, VariantStore, seed_tree
from slipstream.memory.store import Memory

from .context import LoopContext


def tree_of(memory: Memory, store: VariantStore, variant: str) -> Tree:
    """Return a variant's tree; one that isn't stored here is made from its settings.

    Raises:
        SlipstreamError: it isn't here, and its source isn't the shipped one.
    """
    try:
        return store.read(variant)
    except FileNotFoundError:
        tree = seed_tree(memory.variant(variant).settings)
    if tree.id != variant:
        raise SlipstreamError(
            f"variant {variant}: its tree is not on this machine; `slipstream memory export` there "
            "and `memory import` here bring it"
        )
    store.add(tree)
    return tree


def find_tree(
    memory: Memory, store: VariantStore, variant: str, settings: dict[str, str] | None = None
) -> Tree:
    """Return the tree that somebody named, stored on this machine.

    Args:
        variant: its name or a unique beginning of it, or "seed" for the shipped engine.
        settings: levers to pull on the shipped engine, with "seed" only.

    Raises:
        SlipstreamError: unknown, or not on this machine.
    """
    if variant != "seed":
        return tree_of(memory, store, memory.variant(variant).id)
    tree = seed_tree({**SEED_SETTINGS, **(settings or {})})
    store.add(tree)
    return tree


def commit_lineage(context: LoopContext, variant: str) -> None:
    """Give the run's workshop the commits that led to `variant`, in this run or earlier ones.

    Raises:
        SlipstreamError: a tree isn't here, and can't be made.
    """
    lineage = [context.memory.variant(variant)]
    while lineage[-1].parent is not None:
        lineage.append(context.memory.variant(lineage[-1].parent))
    for ancestor in reversed(lineage):
        tree = tree_of(context.memory, context.variants, ancestor.id)
        message = f"{ancestor.id}: from {ancestor.run}\n"
        context.workshop.commit(tree, ancestor.parent, message, int(ancestor.created_at))
