"""Preemption: SIGTERM announces that the machine is about to be taken away."""

import signal
import threading

import jax
from jax.experimental import multihost_utils

# The exit code of a process that was told to stop and can be resumed elsewhere: EX_TEMPFAIL.
EXIT_STATUS = 75


class Preempted(BaseException):
    """The run was told to stop; what it did is saved. Like an interrupt from the keyboard it is no
    `Exception`: it can come anywhere, and no handler of errors is to take it for one."""


class PreemptionNotice:
    """Notices SIGTERM while it is entered: before the first step it ends the run at once, as there
    is nothing to save.

    On several hosts all of them save after the same step, whichever was told: JAX's coordination
    service hears the signal and agrees on one.
    """

    def __init__(self):
        self._stepping = self._told = False
        self._before = None

    def __enter__(self) -> "PreemptionNotice":
        # Python only lets the main thread listen; a run in another one is told nothing.
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._hear)
        return self

    def __exit__(self, *_) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def stops_after(self, step: int) -> bool:
        """Whether this step is the last; to be asked after every one, on every host."""
        self._stepping = True
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._told

    def _hear(self, *_) -> None:
        self._told = True
        if not self._stepping:
            raise Preempted("told to stop before its first step")
