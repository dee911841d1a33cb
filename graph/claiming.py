"""Keeps a session's claims alive, and gives them back when it ends.

A thread renews them three times a lease. A process that is stopped or cut off stops renewing, and
what it writes afterwards is refused; it measures that again once it has the claim anew.
"""

import secrets
import socket
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from slipstream.evaluation.errors import SlipstreamError
from slipstream.evaluation.home import data_dir, make_dir
from slipstream.memory import claims
from slipstream.memory.claims import Claim, Claims, Holding, StaleClaimError

_ASK_AGAIN_S = 1.0


class ClaimedError(Exception):
    """Somebody else has the claim."""

    def __init__(self, holding: Holding) -> None:
        super().__init__(f"{holding.holder} is at it, for {max(0.0, holding.left_s):.0f} s yet")
        self.holding = holding


class ClaimKeeper:
    """The claims of one session.

    Args:
        holder: whose they are: the run.
    """

    def __init__(self, held: Claims, holder: str) -> None:
        self._claims, self._holder = held, holder
        self._held: dict[str, Claim] = {}
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew_for_ever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()
        for claim in list(self._held.values()):
            try:
                self._claims.release(claim)
            except SlipstreamError:  # the database is away: the leases run out by themselves
                return

    def hold(self, key: str, *, holder: str = "") -> Claim:
        """Return the claim on `key`, taking it if this session hasn't got it yet.

        Args:
            holder: whose claim it is, if not the run's.

        Raises:
            ClaimedError: somebody else has it.
        """
        with self._lock:
            if key in self._held:
                return self._held[key]
        found = self._claims.acquire(key, holder or self._holder, claims.LEASE_S)
        if isinstance(found, Holding):
            raise ClaimedError(found)
        with self._lock:
            self._held[key] = found
        return found

    def wait_for(self, key: str, waiting: Callable[[Holding], None]) -> Claim:
        """Return the claim on `key`, as soon as nobody else has it.

        Args:
            waiting: told every second who has it; may raise to give up.
        """
        while True:
            try:
                return self.hold(key)
            except ClaimedError as error:
                waiting(error.holding)
                time.sleep(_ASK_AGAIN_S)

    def held(self, key: str) -> Claim | None:
        """Return the claim on `key` if this session has it."""
        with self._lock:
            return self._held.get(key)

    def drop(self, claim: Claim) -> None:
        """Forget a claim that has turned out stale, or was released."""
        with self._lock:
            if self._held.get(claim.key) == claim:
                del self._held[claim.key]

    def _renew_for_ever(self) -> None:
        while not self._ended.wait(claims.LEASE_S / 3):
            with self._lock:
                held = list(self._held.values())
            for claim in held:
                try:
                    self._claims.renew(claim)
                except StaleClaimError:
                    self.drop(claim)
                except SlipstreamError:  # the database is away; the next write will tell
                    break


def this_host() -> str:
    """Return a name for this machine that another one of the same name doesn't share."""
    path = make_dir(data_dir()) / "host"
    try:
        with path.open("x") as file:
            file.write(secrets.token_hex(3))
    except FileExistsError:
        pass
    return f"{socket.gethostname()}-{path.read_text()}"
