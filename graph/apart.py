"""A bench for one measurement outside a run: `bench`, `verify`, `profile`."""

import secrets
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from slipstream.evaluation.bench import Bench, open_bench
from slipstream.evaluation.challenge import Challenge
from slipstream.evaluation.errors import EngineError, SlipstreamError
from slipstream.kernels.variants import VariantStore


@contextmanager
def bench_apart(
    what: str,
    challenge: Challenge,
    store: VariantStore,
    say: Callable[[str], None],
    *,
    salt: str = "",
    unsafe_local: bool = False,
) -> Iterator[Bench]:
    """Open a bench with prompts of its own, in a folder that goes away again.

    Args:
        what: is measured, for the error's line.
        salt: another one draws other held-out documents.
        unsafe_local: run changed source even where there is no sandbox.

    Raises:
        SlipstreamError: an engine failed.
    """
    with (
        tempfile.TemporaryDirectory() as scratch,
        open_bench(
            challenge,
            store.path,
            Path(scratch),
            seed=secrets.randbelow(2**31),
            salt=salt,
            unsafe_local=unsafe_local,
            say=say,
        ) as bench,
    ):
        try:
            yield bench
        except EngineError as error:
            raise SlipstreamError(f"{what}: {error}") from error
