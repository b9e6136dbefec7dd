"""What a training does where several processes share each batch, beside what one process does."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from ultralytics.utils import LOGGER
from ultralytics.utils.torch_utils import unwrap_model

from utils.checkpoint import build_model, pack_model, plain
from utils.distributed.gradients import average_losses
from utils.distributed.group import await_all, copy_from_first, from_first, group_size, is_shared, is_true_of_all
from utils.distributed.sync_bn import synchronize
from utils.train.run import TrainingRun
from utils.train.teaching.teacher import Teacher

if TYPE_CHECKING:
    from utils.train.trainer import Trainer


def share(trainer: Trainer) -> None:
    """Give all processes the model of the first, and have them learn from one batch together."""
    model = unwrap_model(trainer.model)
    copy_from_first(chain(model.parameters(), model.buffers()))
    model.register_forward_hook(average_losses)
    if trainer.args.sync_bn:
        synchronize(model)
    if not is_true_of_all(trainer.amp):  # the first has compared the outputs
        trainer.amp, trainer.scaler = False, torch.amp.GradScaler(enabled=False)
    each = trainer.batch_size // group_size()
    LOGGER.info(f"{group_size()} processes share each batch of {trainer.batch_size} pictures, {each} each")


def start_together(trainer: Trainer, seed: int) -> None:
    """Start an epoch when all processes are there, which share the order of the pictures, drawn from a seed."""
    if is_shared():
        await_all()
        trainer.train_loader.sampler.start(seed)
        trainer.stopper.possible_stop = not is_true_of_all(not trainer.stopper.possible_stop)


def shared_run(start: Callable[[], TrainingRun]) -> TrainingRun:
    """Return what a training starts from, which the first process reads and checks, and makes the folder of.

    Raises:
        UserError: anything of it is wrong.
    """
    if not is_shared():
        return start()
    own: list[TrainingRun] = []

    def read() -> dict[str, Any]:
        run = start()
        own.append(run)
        model = {} if run.model is None else {**pack_model(run.model), "ema": run.model.state_dict()}
        data = {key: str(value) if isinstance(value, Path) else value for key, value in run.data.items()}
        told = {name: getattr(run, name) for name in ("options", "splits", "left", "checkpoint")}
        teacher = run.teacher.pack() if run.teacher else {}
        return plain({**told, "data": data, "model": model, "teacher": teacher})

    content = from_first(read)
    if own:
        return own[0]
    model = build_model(content["model"], "the first process") if content["model"] else None
    data = {**content["data"], **({"path": Path(content["data"]["path"])} if content["data"] else {})}
    teacher = Teacher.unpack(content["teacher"]) if content["teacher"] else None
    return TrainingRun(**{**content, "data": data, "model": model, "teacher": teacher})
