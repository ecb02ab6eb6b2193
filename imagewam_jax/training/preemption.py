"""Preemption: SIGTERM announces that the machine is about to be taken away; Ctrl-C is the same."""

import os
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
    """Notices SIGTERM and SIGINT (Ctrl-C) while it is entered: before the first step they end the
    run at once, as there is nothing to save. A second SIGINT ends the process at once.

    On several hosts all of them save after the same step, whichever was told: JAX's coordination
    service hears SIGTERM and agrees on one.
    """

    def __init__(self):
        self._stepping = self._told = False
        self._before = {}

    def __enter__(self) -> "PreemptionNotice":
        # Python only lets the main thread listen; a run in another one is told nothing.
        if threading.current_thread() is threading.main_thread():
            if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as in a background job
                self._before[signal.SIGINT] = signal.signal(signal.SIGINT, self._interrupt)
            if jax.process_count() == 1:
                self._before[signal.SIGTERM] = signal.signal(signal.SIGTERM, self._hear)
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def stops_after(self, step: int) -> bool:
        """Whether this step is the last; to be asked after every one, on every host."""
        self._stepping = True
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._told

    def _interrupt(self, *_) -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        # Not printed: the signal may have come while something else was.
        os.write(2, b"\nCtrl-C: the run saves and ends; a second one ends it without saving\n")
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            self._hear()

    def _hear(self, *_) -> None:
        self._told = True
        if not self._stepping:
            raise Preempted("told to stop before its first step")
