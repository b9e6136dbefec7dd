"""What a teacher adds to the steps of a training: it is asked before the student runs, and its losses join the loss."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from ultralytics.nn.modules import Detect
from ultralytics.utils import LOGGER

from models import DetectionModel
from models.backbones.base import level_name
from models.errors import UserError
from models.shared_loss import share_of_mean
from models.summary import count_gflops, count_parameters
from utils.checkpoint.file import check_tensors
from utils.distributed.group import copy_from_first
from utils.train.batches import batch_side
from utils.train.teaching import maps
from utils.train.teaching.features import Features
from utils.train.teaching.imitation import Imitation
from utils.train.teaching.outputs import Outputs, cell_scores, gains_of, has_dense
from utils.train.teaching.teacher import Prepared, Teacher

FEATURE_GAIN = 0.5  # of each level, beside the gain of boxes: as in RTMDet's recipes (mmyolo), where boxes weigh 2
NOTICEABLE = 1.05  # times as much work a step, from which on the log says so


class Lesson:
    """What one teacher teaches one model.

    Args:
        teacher: None: the run's own average of weights.
        model: the student, with the names of its classes.
        options: of the run: `teacher_loss`, `teacher_weight`, `teacher_off`, `imitate`, `imgsz`, `multi_scale`, `seed`.

    Attributes:
        features, imitation, outputs: what is taught; the last two are None where nothing is.
        why_not: why the outputs teach nothing, if they do not.

    Raises:
        UserError: the teacher takes other pictures, or there is nothing that it could teach.
    """

    def __init__(self, teacher: Teacher | None, model: DetectionModel, options: Mapping[str, Any]) -> None:
        self.teacher, self.options = teacher, options
        network = model if teacher is None else teacher.network
        self.whole = teacher is None or teacher.whole
        heads = network.model[-1], model.model[-1]
        self.of_neck = self.whole and all(isinstance(head, Detect) for head in heads)
        if teacher is not None:
            check_size(network, options)
        self.digest = "" if teacher is None else teacher.digest()
        self.imitation = Imitation(network, model, options["imitate"]) if options["imitate"] else None
        theirs, own = self.place(network, of_teacher=True), self.place(model, of_teacher=False)
        channels = {s: (count, theirs.channels[s]) for s, count in own.channels.items() if s in theirs.channels}
        self.features = Features(options["teacher_loss"], channels, options["seed"])
        self.is_on = True
        self.set_outputs(network, model)
        if not self.names():
            raise UserError(
                f"the teacher has maps at {_listed(theirs.channels)} and the model at {_listed(own.channels)}: "
                f"there is no level that it could teach; its outputs cannot either: {self.why_not}"
            )

    def set_outputs(self, network: DetectionModel, model: DetectionModel) -> None:
        """Find out whether the outputs of a teacher's network teach those of a model."""
        outputs = Outputs(network, model) if self.whole else None
        self.why_not = outputs.why_not if outputs else "its head is not trained"
        self.outputs = None if self.why_not else outputs

    def place(self, network: DetectionModel, of_teacher: bool) -> maps.Place:
        """Return where a network has the maps that teach or learn."""
        return maps.neck(network) if self.of_neck else maps.backbone(network, of_teacher and not self.whole)

    def attach(self, model: DetectionModel, ema: DetectionModel, device: torch.device) -> None:
        """Let the teacher take part in every step of a model from now on.

        Args:
            model: the student, with the options of its training.
            ema: the average of its weights.
            device: where it is trained.
        """
        network = ema if self.teacher is None else self.teacher.network
        self.set_outputs(network, model)  # the model's anchors may be others by now
        self.gains = gains_of(model)
        self.has_scores = self.features.kind == "l2" and self.of_neck and has_dense(network.model[-1])
        self.reads_head = self.outputs is not None or self.has_scores
        self.ema = ema if self.teacher is None else None
        self.asked: Any = ema
        if self.teacher is not None:
            last = len(network.model) - 1 if self.reads_head else self.place(network, of_teacher=True).last
            self.asked = Prepared(self.teacher, last, fused=self.imitation is None).to(device)
            network = self.asked.network
        self.heads = model.model[-1], network.model[-1]
        self.watches = self.watch(model, of_teacher=False), self.watch(network, of_teacher=True)
        self.taught: dict[Hashable, Any] | None = None
        self.features.adapters.to(device)
        copy_from_first(self.features.adapters.parameters())
        model.register_forward_pre_hook(self.ask)
        model.register_forward_hook(self.teach, prepend=True)  # before losses are averaged over processes
        LOGGER.info(self.card(model, network))
        self.teacher = None  # which would take memory

    def watch(self, network: DetectionModel, of_teacher: bool) -> maps.Watch:
        """Return what keeps of a network what is compared."""
        taps = list(self.place(network, of_teacher).taps) if self.features.strides else []
        taps += [maps.output(network)] if self.reads_head else []
        taps += self.imitation.taps(network, of_teacher) if self.imitation else []
        return maps.Watch(taps)

    def names(self) -> tuple[str, ...]:
        """Return what its losses are called."""
        outputs = self.outputs.names() if self.outputs else ()
        return (*self.features.names(), *outputs, *(("imit_loss",) if self.imitation else ()))

    # Steps ------------------------------------------------------------------------------------------------------------
    def start_epoch(self, model: DetectionModel, epoch: int, epochs: int) -> None:
        """Teach in this epoch, numbered from 0, unless it is one of the last ones, in which nothing is taught."""
        self.is_on = epoch < epochs - self.options["teacher_off"]
        if self.ema is not None:  # a checkpoint has the statistics of the first process alone
            copy_from_first(chain(model.buffers(), self.ema.buffers()))

    def ask(self, _: nn.Module, inputs: tuple[Any, ...]) -> None:
        """Run the teacher on a batch that the model is about to learn from."""
        self.taught = None
        if not (is_lesson(inputs) and self.is_on):
            return
        own, theirs = self.watches
        theirs.start()
        try:
            with torch.no_grad():
                self.asked(inputs[0]["img"])
        finally:
            found = theirs.stop()
        self.taught = found
        own.start()

    def teach(self, _: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        """Return the loss of a model and its parts for the log, with those of the teacher."""
        if not is_lesson(inputs):
            return output
        loss, parts = output
        if self.taught is None:
            return loss, {**parts, **{name: loss.new_zeros(()) for name in self.names()}}
        found, taught, self.taught = self.watches[0].stop(), self.taught, None
        with torch.autocast(loss.device.type, enabled=False):  # boxes and distributions need float32
            losses = {name: self.options["teacher_weight"] * each for name, each in self.losses(found, taught).items()}
        pictures = loss.new_tensor(float(len(inputs[0]["img"])))
        scale = pictures if isinstance(self.heads[0], Detect) else share_of_mean(pictures)  # as the model's own loss
        total = torch.stack([*losses.values()]).sum() * scale
        return loss.sum() + total, {**parts, **{name: each.detach() for name, each in losses.items()}}

    def losses(self, found: Mapping[Hashable, Any], taught: Mapping[Hashable, Any]) -> dict[str, Tensor]:
        """Return the losses by name, with their gains.

        Each kind has the gain with which it is published, where it teaches alone; of several each has its part of that,
        so that the teacher does not outweigh the labels.

        Args:
            found: what the student's watch has kept.
            taught: what the teacher's has.
        """
        losses: dict[str, Tensor] = {}
        gain = FEATURE_GAIN * self.gains.box
        if self.features.strides:
            scores = self.scores(taught) if self.has_scores else {}
            losses[self.features.names()[0]] = gain * self.features.loss(found, taught, scores)
        if self.outputs:
            losses |= self.outputs.losses(self.heads, found["output"], taught["output"], self.gains)
        if self.imitation:
            losses["imit_loss"] = gain * self.imitation.loss(found, taught)
        kinds = sum(map(bool, (self.features.strides, self.outputs, self.imitation)))
        return {name: loss / kinds for name, loss in losses.items()}

    def scores(self, taught: Mapping[Hashable, Any]) -> dict[float, Tensor]:
        """Return how sure the teacher is of an object in each cell, (B, 1, H, W) by stride."""
        head: Any = self.heads[1]
        shapes = {stride: taught[stride].shape[2:] for stride in map(float, head.stride)}
        return cell_scores(head, taught["output"], shapes)

    # Its own weights --------------------------------------------------------------------------------------------------
    def join(self, optimizer: torch.optim.Optimizer, lr: float) -> None:
        """Let an optimizer, whose learning rate is `lr`, train the adapters as it does the weights of the neck."""
        if weights := list(self.features.adapters.parameters()):
            groups = [group for group in optimizer.param_groups if group["param_group"] in ("weight", "muon")]
            like = next(group for group in groups if group["lr"] == lr)
            optimizer.add_param_group({**like, "params": weights, "param_group": "adapters"})

    def state(self) -> dict[str, Any]:
        """Return what resuming needs of it."""
        return {"adapters": self.features.adapters.state_dict(), "teacher": self.digest}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take what `state` has returned; ValueError if that was of another lesson."""
        check_tensors(state["adapters"], self.features.adapters, "teaching")
        self.features.adapters.load_state_dict(state["adapters"])

    # What is said of it -----------------------------------------------------------------------------------------------
    def card(self, model: DetectionModel, network: DetectionModel) -> str:
        """Return what teaches what, and what that costs, for the log."""
        name = "the average of the model's own weights" if self.teacher is None else self.teacher.name
        taught = []
        if self.features.strides:
            count = len(self.features.adapters)
            adapted = f" ({count} through a 1x1 convolution)" if count else ""
            where = "neck" if self.of_neck else "backbone"
            taught.append(f"maps of the {where} at {_listed(self.features.strides)}{adapted} by {self.features.kind}")
        if self.outputs:
            boxes = "boxes and " if self.outputs.has_boxes else ""
            taught.append(f"{boxes}scores of {len(self.outputs.own)} of {len(model.names)} classes")
        if self.imitation:
            taught.append(f"{len(self.imitation.modules)} modules {self.imitation.word} and the blocks around them")
        parameters, size = count_parameters(network), _sides(self.options)
        lines = [f"Teacher: {name}, {parameters / 1e6:.2f} M parameters, teaches {'; '.join(taught)}"]
        if self.why_not:
            lines.append(f"Its outputs teach nothing: {self.why_not}")
        if self.options["teacher_off"]:
            lines.append(f"It is off in the last {self.options['teacher_off']} epochs")
        own, more = (count_gflops(each, size) for each in (model, network))
        if (times := 1 + more / (3 * own)) > NOTICEABLE:  # a step is one run forwards and about two backwards
            held = "" if self.ema is not None else f", and its weights take {4e-6 * parameters:.0f} MB"
            lines.append(f"With it each step computes about {times:.1f} times as much{held}")
        return "\n".join(lines)


def is_lesson(inputs: tuple[Any, ...]) -> bool:
    """Return whether a model is given a batch to learn from, rather than pictures."""
    return isinstance(inputs[0], dict) and torch.is_grad_enabled()


def check_size(network: DetectionModel, options: Mapping[str, Any]) -> None:
    """Raise UserError where a teacher does not take the pictures of a training."""
    only = network.only_size
    if only and (only != _sides(options) or options["multi_scale"]):
        raise UserError(f"the teacher takes pictures of {only[0]}x{only[1]} alone: train with that --imgsz")


def _sides(options: Mapping[str, Any]) -> tuple[int, int]:
    return batch_side(options), batch_side(options)


def _listed(strides: Iterable[float]) -> str:
    return ", ".join(level_name(round(stride)) for stride in strides) or "no level"
