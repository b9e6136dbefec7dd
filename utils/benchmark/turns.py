"""A training that takes its steps in turns with others, in a process of its own.

    python -m utils.benchmark.turns SOCKET STEPS train.py --cfg yolov5n.yaml ...
    python -m utils.benchmark.turns SOCKET STEPS -m utils.comparison.train_ultralytics --cfg yolov5n ...

After so many steps it sends a line of JSON, `seconds`, `pictures` and `peak_mb`, on the socket with that number, and
goes on when it is sent a byte. What is timed is the loop of ultralytics' trainer, from the end of a step to the end of
the next: reading and augmenting pictures, network, loss, gradients, optimizer and the average of weights. What happens
between epochs is not, and nothing is validated.
"""

from __future__ import annotations

import json
import resource
import runpy
import socket
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch
from ultralytics.utils.callbacks.base import default_callbacks

from utils.paths import ROOT

KB = 1 if sys.platform == "darwin" else 1024  # bytes, in which the system counts memory


class Turns:
    """Counts the steps of a training, and pauses it where others have their turn.

    Args:
        line: to the process that says whose turn it is.
        steps: of one turn.
    """

    def __init__(self, line: socket.socket, steps: int) -> None:
        self.line, self.steps = line, steps
        self.start, self.seconds, self.done = 0.0, 0.0, 0

    def __deepcopy__(self, _: dict[int, Any]) -> Turns:
        return self  # of callbacks, each trainer makes a copy

    def before_training(self, trainer: Any) -> None:
        """Leave out validations."""
        trainer.args.val = False

    def before_epoch(self, _: Any) -> None:
        """Start to time a step."""
        self.start = time.perf_counter()

    def after_step(self, trainer: Any) -> None:
        """Count a step, and wait at the end of a turn; SystemExit where there is no other turn."""
        if trainer.device.type == "cuda":
            torch.cuda.synchronize(trainer.device)
        self.seconds += time.perf_counter() - self.start
        self.done += 1
        if self.done == self.steps:
            pictures = self.steps * len(trainer.train_loader.dataset) / len(trainer.train_loader)
            told = {"seconds": self.seconds, "pictures": pictures, "peak_mb": peak_memory(trainer.device) / 1e6}
            self.line.sendall(f"{json.dumps(told)}\n".encode())
            if not self.line.recv(1):
                raise SystemExit
            self.seconds, self.done = 0.0, 0
        self.start = time.perf_counter()


def peak_memory(device: torch.device) -> int:
    """Return the most bytes that this process has held so far: on its GPU if it trains there, else in memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KB


def main(words: Sequence[str]) -> None:
    """Run a script or a module, whose training takes turns."""
    turns = Turns(socket.socket(fileno=int(words[0])), int(words[1]))
    default_callbacks["on_pretrain_routine_start"].append(turns.before_training)
    default_callbacks["on_train_epoch_start"].append(turns.before_epoch)
    default_callbacks["on_train_batch_end"].append(turns.after_step)
    if words[2] == "-m":
        sys.argv = list(words[3:])
        runpy.run_module(words[3], run_name="__main__", alter_sys=True)
    else:
        sys.argv = list(words[2:])
        runpy.run_path(str(ROOT / words[2]), run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1:])
