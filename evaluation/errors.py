"""Errors that a person reads: one line that names what was wrong, the value, and what to do."""


class SlipstreamError(Exception):
    """Something the user can act on. The command line prints it without a traceback."""


class EngineError(Exception):
    """An engine did not do its work. The experiment ends with a verdict; the loop goes on.

    Attributes:
        log: the end of what its process printed.
    """

    def __init__(self, reason: str, log: str = "") -> None:
        super().__init__(reason)
        self.log = log


class EngineFailedError(EngineError):
    """The engine crashed, refused or ran out of time: the verdict is *failed*."""


class ExposedError(EngineFailedError):
    """Changed source was not run, because there is no sandbox here; elsewhere there may be one."""


class InvalidOutputError(EngineError):
    """The engine broke the protocol (wrong count, garbage, NaN …): the verdict is *invalid*."""


ENGINE_ERRORS: dict[str, type[EngineError]] = {  # by the names that they travel under
    kind.__name__: kind for kind in (EngineFailedError, ExposedError, InvalidOutputError)
}


class WorkerLostError(Exception):
    """A place to measure went away in the middle; what it had not told is to be asked for again."""


class UnreachedError(Exception):
    """No machine lived long enough to measure it; its engine may be fine."""


class OutOfTimeError(Exception):
    """The run's budget ended in the middle of an experiment; what was measured stays."""


class OutOfMoneyError(Exception):
    """The run's dollars don't cover the next call of a model; it was not made."""


class StopRequested(Exception):  # noqa: N818  (not an error: somebody asked)
    """Ctrl-C was pressed; work stops at the next boundary where nothing is lost."""
