"""Experiments in flight: each is carried through by a thread of its own."""

from collections.abc import Callable, Collection
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Generic, TypeVar

_T = TypeVar("_T")
_LOOK_EVERY_S = 0.2


class Crew(Generic[_T]):
    """Threads that carry experiments through; none is waited for longer than somebody asks.

    Args:
        size: experiments that are in flight at most.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._threads = ThreadPoolExecutor(size, "experiment")
        self._work: dict[str, Future[_T]] = {}

    def has(self, name: str) -> bool:
        """Whether an experiment is in flight, or landed and wasn't asked for yet."""
        return name in self._work

    def start(self, name: str, work: Callable[[], _T]) -> None:
        """Begin an experiment, unless that is done already."""
        if name not in self._work:
            self._work[name] = self._threads.submit(work)

    def landed(self, look: Callable[[], None]) -> list[str]:
        """Wait until something has landed; return all that has, in order of their names.

        Args:
            look: called several times a second; may raise to give up.
        """
        while self._work and not (found := self.landed_already()):
            wait(self._work.values(), _LOOK_EVERY_S, FIRST_COMPLETED)
            look()
        return found if self._work else []

    def landed_already(self) -> list[str]:
        """Return all that has landed, in order of their names."""
        return sorted(name for name, one in self._work.items() if one.done())

    def results(self, names: Collection[str]) -> dict[str, _T]:
        """Wait for some experiments; return what came of them, or raise what one raised."""
        return {name: self._work.pop(name).result() for name in names}

    def close(self) -> None:
        """Wait until all threads are gone: whoever calls this has told them to stop."""
        self._threads.shutdown(cancel_futures=True)
