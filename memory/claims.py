"""Claims: leased intents, so that no two runs do the same work.

A claim is a key, a holder and a lease by the database's clock. Whoever stops renewing it loses it.
`fence` counts how often a key changed hands: a write that carries an older fence, or comes after
the lease has run out, is refused in its own transaction, however late the holder wakes up.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Float, Table, bindparam, select, update

from slipstream.evaluation.errors import SlipstreamError

from .database import Database
from .queries import TABLES, insert_into

LEASE_S = 60.0
_IDENTITY = ("key", "holder", "fence")
_CLAIMS: Table = TABLES["claims"]


class StaleClaimError(SlipstreamError):
    """The claim that a write rests on has run out, or somebody else holds it now."""


@dataclass(frozen=True)
class Claim:
    """The right to work on `key` until the lease runs out; renewing and writing extend it."""

    key: str
    holder: str
    fence: int
    lease_s: float = LEASE_S


@dataclass(frozen=True)
class Holding:
    """Who holds a key, and for how many seconds yet."""

    key: str
    holder: str
    fence: int
    left_s: float


class Claims:
    """The claims of one memory."""

    def __init__(self, database: Database) -> None:
        self._database = database
        # Built once: each measured pair is written under a claim.
        now, lease_s = database.now, bindparam("lease_s", type_=Float)
        is_mine = [_CLAIMS.c[name] == bindparam(f"my_{name}") for name in _IDENTITY]
        self._take = (
            insert_into(_CLAIMS, database.dialect)
            .values(
                key=bindparam("my_key"),
                holder=bindparam("my_holder"),
                fence=1,
                acquired_at=now,
                expires_at=now + lease_s,
            )
            .on_conflict_do_update(
                index_elements=["key"],
                set_={
                    "holder": bindparam("my_holder"),
                    "fence": _CLAIMS.c.fence + 1,
                    "acquired_at": now,
                    "expires_at": now + lease_s,
                },
                where=(_CLAIMS.c.expires_at <= now) | (_CLAIMS.c.holder == bindparam("my_holder")),
            )
            .returning(_CLAIMS.c.fence)
        )
        self._renew = (
            update(_CLAIMS)
            .where(*is_mine, _CLAIMS.c.expires_at > now)
            .values(expires_at=now + lease_s)
        )
        # The row stays: its fence must go on counting.
        self._end = update(_CLAIMS).where(*is_mine).values(expires_at=0.0)
        left_s = (_CLAIMS.c.expires_at - now).label("left_s")
        held = select(_CLAIMS.c.key, _CLAIMS.c.holder, _CLAIMS.c.fence, left_s)
        self._held_by = held.where(_CLAIMS.c.key == bindparam("my_key"))
        beginning = _CLAIMS.c.key.startswith(bindparam("beginning"), autoescape=False)
        self._live = held.where(_CLAIMS.c.expires_at > now, beginning)

    def acquire(self, key: str, holder: str, lease_s: float = LEASE_S) -> Claim | Holding:
        """Take a free key, one whose lease has run out, or one that `holder` has anyway.

        Returns:
            The claim, or who holds the key instead.
        """
        values = {"my_key": key, "my_holder": holder, "lease_s": lease_s}

        def work(connection: Connection) -> Claim | Holding | None:
            fence = connection.scalar(self._take, values)
            if fence is not None:
                return Claim(key, holder, fence, lease_s)
            found = connection.execute(self._held_by, {"my_key": key}).mappings().one_or_none()
            return None if found is None else _holding(found)

        while (result := self._database.write(work)) is None:
            pass  # it was released in between
        return result

    def renew(self, claim: Claim) -> None:
        """Extend the lease.

        Raises:
            StaleClaimError: it has run out, or changed hands.
        """
        self._database.write(lambda connection: self.guard(connection, claim))

    def guard(self, connection: Connection, claim: Claim) -> None:
        """Check a claim, extend it, and lock it until the transaction ends.

        To be called first in a transaction that writes under the claim.
        """
        values = {**_identity(claim), "lease_s": claim.lease_s}
        if connection.execute(self._renew, values).rowcount == 0:
            raise StaleClaimError(
                f"claim {claim.key} of {claim.holder} (fence {claim.fence}) has run out or changed "
                "hands; nothing was written"
            )

    def release(self, claim: Claim) -> None:
        """Give a claim back; one that was lost already stays with its new holder."""
        self._database.write(lambda connection: self.end(connection, claim))

    def end(self, connection: Connection, claim: Claim) -> None:
        """Give a claim back within a transaction."""
        connection.execute(self._end, _identity(claim))

    def live(self, beginning: str = "") -> list[Holding]:
        """Return the claims that are held now, on keys that begin with `beginning`."""
        values = {"beginning": beginning}
        rows = self._database.read(lambda c: c.execute(self._live, values).mappings().all())
        # LIKE takes % and _ for more than they are, and SQLite's doesn't tell cases apart.
        return [_holding(row) for row in rows if row["key"].startswith(beginning)]


def _identity(claim: Claim) -> dict[str, str | int]:
    return {"my_key": claim.key, "my_holder": claim.holder, "my_fence": claim.fence}


def variant_key(challenge: str, machine: str, variant: str) -> str:
    """Return the key of measuring a variant on a challenge and kind of machine."""
    return f"measure|{challenge}|{machine}|{variant}"


def _holding(row: Mapping[Any, Any]) -> Holding:
    return Holding(row["key"], row["holder"], row["fence"], row["left_s"])


def names(holdings: Sequence[Holding]) -> list[str]:
    """Return the variants that claims of measuring are about."""
    return [holding.key.rpartition("|")[2] for holding in holdings]
