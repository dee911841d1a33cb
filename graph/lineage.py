"""A variant's tree and its ancestors', on a machine where they may never have been made.

Memory can be shared, trees lie on the machine that made them. One with the shipped source follows
from its settings; another one has to be imported.
"""

from slipstream.evaluation.errors import SlipstreamError
from slipstream.kernels.seeds import catalogue_of, remade, seed_of
from slipstream.kernels.variants import Tree, VariantStore
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
        tree = remade(memory.variant(variant).settings)
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
        variant: its name or a unique beginning of it, "seed" for the shipped engine, or the name
            of a served one that ships.
        settings: levers to pull on what ships.

    Raises:
        SlipstreamError: unknown, or not on this machine.
    """
    shipped = seed_of("" if variant == "seed" else variant) if variant else None
    if shipped is None:
        return tree_of(memory, store, memory.variant(variant).id)
    if wrong := catalogue_of(shipped).unknown(settings or {}):
        raise SlipstreamError(f"{variant}: {wrong}")
    tree = shipped.with_settings({**shipped.settings, **(settings or {})})
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
