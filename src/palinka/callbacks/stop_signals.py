"""Ending a run between two steps when the machine is about to be taken away."""

from types import FrameType

import lightning.pytorch as pl
from lightning.pytorch.trainer.connectors.signal_connector import _SignalConnector


class StopSignals(_SignalConnector):
    """Lightning's signal handling, put off to a moment when all processes are at the same place.

    Lightning talks to the other processes from within the handler, wherever each of them happens
    to be, and then lets each stop by itself. Here the handler only takes note; `RunCheckpoints`
    asks at every step whether anybody was told to stop, saves, and lets all of them stop at once.
    """

    def __init__(self, trainer: "pl.Trainer") -> None:
        super().__init__(trainer)
        self._told = False

    def told_to_stop(self) -> bool:
        """Whether any process has had SIGTERM; all of them must ask at the same step."""
        return bool(self.trainer.strategy.reduce_boolean_decision(self._told, all=False))

    def stop(self) -> None:
        """Let Lightning end the run before the next step, on this process."""
        self.received_sigterm = True

    def _sigterm_notifier_fn(self, signum: int, _: FrameType | None) -> None:
        launcher = self.trainer.strategy.launcher
        if launcher is not None and not self._told:
            launcher.kill(signum)
        self._told = True
