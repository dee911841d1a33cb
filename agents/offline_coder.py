"""The coder that needs no key: it sets levers and writes no source."""

from slipstream.kernels.variants import Tree
from slipstream.memory.records import Hypothesis, is_edit

from .roles import CoderError, Workbench


class OfflineCoder:
    """Satisfies `Coder`."""

    name = "offline-coder"

    def implement(
        self,
        hypothesis: Hypothesis,
        parent: Tree,
        bench: Workbench,  # noqa: ARG002
    ) -> Tree:
        """Return the parent's source with the hypothesis' settings.

        Raises:
            CoderError: it asks for an edit.
        """
        if is_edit(hypothesis):
            raise CoderError(
                f"{hypothesis.target}: the offline coder sets levers and writes no source; "
                "choose another one with --coder"
            )
        return parent.with_settings(hypothesis.settings)

    def repair(
        self,
        hypothesis: Hypothesis,  # noqa: ARG002
        tree: Tree,  # noqa: ARG002
        error: str,  # noqa: ARG002
        bench: Workbench,  # noqa: ARG002
    ) -> Tree | None:
        """Give up: a setting that doesn't run can't be mended without touching the source."""
        return None
