"""What a thinking agent may use besides its prompt: money, time, the tape, somebody to tell."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from slipstream.evaluation.errors import OutOfMoneyError
from slipstream.memory.cassette import Cassette
from slipstream.memory.costs import Cost, Costs


def _say_nothing(agent: str, text: str, fleeting: bool) -> None: ...


@dataclass
class Purse:
    """A run's dollars. What is committed counts as spent until it is known better.

    Attributes:
        limit: of the whole run, earlier sessions included; None for no limit.
    """

    run: str
    costs: Costs
    limit: float | None = None
    lock: threading.RLock = field(default_factory=threading.RLock)

    @property
    def left(self) -> float | None:
        """Dollars left; None without a limit."""
        return None if self.limit is None else self.limit - self.costs.usd(self.run)

    def commit(self, cost: Cost) -> None:
        """Write down what is about to begin, with the most that it can cost.

        Raises:
            OutOfMoneyError: the run has less left than that.
        """
        left = self.costs.begin_within(cost, self.limit)
        if left is not None:
            raise OutOfMoneyError(
                f"a call of {cost.model} may cost ${cost.usd or 0.0:.4f}, and of the budget of "
                f"${self.limit:.2f} ${left:.4f} is left"
            )


@dataclass
class Session:
    """One session of a run, as its agents see it.

    Attributes:
        say: tells whoever watches: agent, text, whether it is progress only.
        left_s: seconds that the run has left.
        check_stop: raises StopRequested after Ctrl-C.
    """

    run: str
    seed: int
    costs: Costs
    purse: Purse
    cassette: Cassette
    left_s: Callable[[], float]
    say: Callable[[str, str, bool], None] = _say_nothing
    check_stop: Callable[[], None] = lambda: None
