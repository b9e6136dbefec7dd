"""Trainings that are stopped on purpose."""

from __future__ import annotations

from contextlib import contextmanager

import pytest

from utils.train.trainer import Trainer


@contextmanager
def stopped(monkeypatch, event: str, epoch: int):
    """Let every training within be interrupted as by Ctrl-C, at an event of the epoch with this number, from 0."""

    def stop(trainer):
        if trainer.epoch == epoch:
            raise KeyboardInterrupt

    original = Trainer.__init__

    def with_stop(self, *args, **kwargs):
        original(self, *args, **kwargs)
        self.add_callback(event, stop)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "__init__", with_stop)
        with pytest.raises(KeyboardInterrupt):
            yield
