"""Training: ultralytics' loop around our model, data sets and checkpoints.

Beyond ultralytics' trainer, a run that was stopped and resumed ends with the weights of one that was not: every epoch
starts from a seed of its own, no gradient is left behind at its end, and `last.pt` holds everything in float32.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Mapping
from copy import copy
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
import yaml
from torch import nn
from torch.utils._pytree import tree_leaves
from ultralytics.data.build import build_dataloader
from ultralytics.engine import trainer as engine
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.utils import LOGGER, RANK
from ultralytics.utils.torch_utils import ModelEMA, autocast, init_seeds, unwrap_model

from models import DetectionModel, create_model
from models.backbones import Backbone
from models.blocks.repconv import RepConv
from models.blocks.rounding import rounded_share
from models.environment import patch_ultralytics
from models.errors import UserError, WeightsError
from models.heads import AnchorDetect
from models.loss import AnchorGains
from models.spec import ModelSpec
from models.summary import backbone_card, branches_text, head_card
from utils.checkpoint import build_model, pack_model, plain, read_checkpoint, save_checkpoint
from utils.checkpoint.file import check_tensors
from utils.data.dataset import build_dataset
from utils.data.description import write_data_yaml
from utils.data.quad import JOINED, as_loss_of_four, collate_quad
from utils.distributed.gradients import add_gradients
from utils.distributed.group import (
    await_all,
    copy_from_first,
    first_before_others,
    from_first,
    group_size,
    is_first,
    is_shared,
    is_true_of_all,
    threads_of_process,
)
from utils.distributed.shards import Shard, shard_loader
from utils.drawing.fonts import use_in_plots
from utils.evaluate.validator import VALIDATORS, ClassValidator, Validator
from utils.paths import remove_run
from utils.train.anchors import fit_anchors
from utils.train.batches import batch_side, check_trains_on_one, trains_on_one
from utils.train.classes import match_classes
from utils.train.distributed import share, start_together
from utils.train.freezing import (
    check_unfreezing,
    declared_frozen,
    frozen_paths,
    frozen_text,
    hold,
    keep_statistics,
)
from utils.train.gradients import check_scales_steps, scale_steps, start_as_sum
from utils.train.groups import backbone_rates, groups_table, make_optimizer, optimized
from utils.train.loggers import add_loggers
from utils.train.qat import insert_rounding, observe
from utils.train.run import NOT_FINITE, OWN_OPTIONS, SPLITS, TrainingRun, log_other_counts, save_final
from utils.train.sampling import draw, picture_weights
from utils.train.teaching.lesson import Lesson
from utils.train.transfer import transfer
from utils.writing import remove_partials, write_text

LOADER_SEED = 6148914691236517205  # ultralytics' own
OTHER_PROCESS = 1_000_003  # between the seeds of processes that share batches
BY_DEVICE = ("foreach", "fused", "capturable")  # settings of an optimizer that depend on the device
FUSED = ("Adam", "AdamW")  # optimizers that step in one pass on a GPU; on the CPU AdamW takes 8 ms instead of 32
DEFAULT_BATCH = 16  # pictures a step where none is given and none can be measured, as in YOLOv5
OBSERVED = 8  # batches that ranges of INT8 are taken from before they are trained


class Trainer(DetectionTrainer):
    """Trains a `DetectionModel`. The loop is ultralytics' (`ultralytics.engine.trainer.BaseTrainer`), which calls:

        __init__       get_dataset                      the description of the data set
        train          _setup_train                     all that is set up before the first epoch:
          setup_model                                   the model, or that of the checkpoint
          _build_train_pipeline                         get_dataloader (build_dataset, collate_fn), build_optimizer
          get_validator, resume_training                the EMA is made before, from the model
        each epoch     seed_epoch                       by our callback
          each batch   preprocess_batch, model(batch)   the loss: `init_criterion` of the model at the first batch
                       optimizer_step                   clips gradients, steps, updates the EMA
          validate     get_validator's, on the EMA
          save_metrics, save_model                      results.csv, last.pt, best.pt
        at the end     final_eval                       validates best.pt; then the run is finished

    Of its options (`args`) these are ours: `custom_l2` puts RepVGG's penalty on the fused kernels in place of weight
    decay on their branches; `anchor_gains` are the hyper-parameters of the loss of heads with anchors, by YOLOv5's
    names; `autoanchor` fits their anchors to the data set; `qat` fine-tunes the first weights in their fused form, with
    the rounding of INT8; `rep_optimizer` has plain convolutions learn as with branches; `accumulate` is the number of
    batches a step; `logger` names services that follow the training; `sync_bn` takes the statistics of BatchNorm over
    all processes; `teacher` names what it learns from beside the labels (`utils.train.teaching`).

    Where several processes share each batch (`utils.distributed`), `device` is that of this one, and ultralytics, which
    would wrap the model, is told of one process alone: gradients are summed in `optimizer_step`.

    Raises:
        UserError: a wrong YAML or checkpoint, or a loss that is not finite any more.
    """

    model: Any  # the path of a YAML, then the model

    def __init__(self, run: TrainingRun, device: torch.device | None = None) -> None:
        self.run = run
        super().__init__({**OWN_OPTIONS, **vars(engine.get_cfg())}, {**run.options, "mode": "train"})
        if device is not None:
            self.device, self.world_size = device, 1  # the processes share batches by what `utils.distributed` does
        if self.device.type == "cpu":
            torch.set_num_threads(threads_of_process())  # ultralytics leaves one for loading, done in between here
        for folder in (self.save_dir, self.wdir):
            remove_partials(folder)
        self.history: list[dict[str, float]] = []
        self.batches = 0  # of this epoch, so far
        self.frozen: list[str] = []  # paths of what --freeze names, for as many epochs as --unfreeze-after says
        self.declared: list[str] = []  # paths of what the backbone itself declares as not trained
        self.maps: list[float] = []  # mAP50-95 of each class in the last validation, for `image_weights`
        self.penalized: list[RepConv] = []
        self.lesson: Lesson | None = None
        self.add_callback("on_train_epoch_start", Trainer.seed_epoch)
        self.add_callback("on_fit_epoch_end", lambda _: await_all())  # the first process has measured and written

    def check_resume(self, overrides: dict[str, Any]) -> None:  # noqa: ARG002
        """Resume the checkpoint of the run; ultralytics would look for its options by itself."""
        self.resume = self.run.checkpoint is not None

    def get_dataset(self) -> dict[str, Any]:
        """Return the data set, and keep a copy of its description in the run's folder."""
        data = of_classes(self.run.data, self.args.single_cls)
        if is_first():
            write_data_yaml(data, self.save_dir / "data.yaml")
        if self.args.plots:
            use_in_plots("".join(data["names"].values()))
        return data

    def build_dataset(self, img_path: str, mode: str = "train", batch: int = 1) -> Any:
        """Return the data set of one split; validation pictures are grouped by shape."""
        model = unwrap_model(self.model)
        stride = max(int(model.stride.max()), 32)
        rect = mode == "val" and not model.wants_one_canvas
        return build_dataset(self.args, img_path, batch, self.data, mode=mode, rect=rect, stride=stride)

    def get_dataloader(self, dataset_path: str, batch_size: int = 16, rank: int = 0, mode: str = "train") -> Any:
        """Return the loader of one split, as ultralytics does, whose last batch is dropped where it cannot be trained.

        Raises:
            UserError: all batches are like that.
        """
        training = mode == "train"
        with first_before_others():
            dataset = self.build_dataset(dataset_path, mode, batch_size)
        if training and self.args.quad:
            dataset.collate_fn = collate_quad
        in_order = dataset.rect and not bool((dataset.batch_shapes == dataset.batch_shapes[0]).all())
        shuffle, workers = training and not in_order, self.args.workers if training else 2 * self.args.workers
        if is_shared():
            least = self.least_share(len(dataset), batch_size) if training else 0
            return shard_loader(dataset, Shard(len(dataset), batch_size, shuffle, least), workers, self.device)
        return build_dataloader(
            dataset,
            batch=batch_size,
            workers=workers,
            shuffle=shuffle,
            rank=rank,
            drop_last=training and self.drops_last(len(dataset), batch_size),
            device=self.device,
        )

    def least_share(self, pictures: int, batch_size: int) -> int:
        """Return how many pictures of a batch each process needs to train on them.

        Raises:
            UserError: it has fewer of every batch.
        """
        model, side, scale = unwrap_model(self.model), batch_side(vars(self.args)), self.args.multi_scale
        joined = JOINED if self.args.quad else 1
        if self.args.sync_bn or trains_on_one(model, side, scale):
            return joined
        if min(pictures, batch_size) < 2 * joined * group_size():
            check_trains_on_one(model, side, scale)
        return 2 * joined

    def drops_last(self, pictures: int, batch_size: int) -> bool:
        """Return whether the last batch is too small: one picture on which the model does not train, or part of one.

        Args:
            pictures: of an epoch.
            batch_size: pictures a step.

        Raises:
            UserError: every batch is.
        """
        left, joined = pictures % batch_size, JOINED if self.args.quad else 1
        model, side, scale = unwrap_model(self.model), batch_side(vars(self.args)), self.args.multi_scale
        if min(pictures, batch_size) // joined == 1:
            check_trains_on_one(model, side, scale)
        if left == 0 or left >= 2 * joined or (left >= joined and trains_on_one(model, side, scale)):
            return False
        why = "one picture, which leaves BatchNorm a single value" if left >= joined else "too few pictures to join"
        LOGGER.info(f"the last batch would be {why}: each epoch drops {'one' if left == 1 else left}")
        return True

    def setup_model(self) -> dict[str, Any] | None:
        """Build the model, from the checkpoint when resuming; return the checkpoint or None.

        ultralytics gives it to `resume_training`.
        """
        if isinstance(self.model, nn.Module):
            return None
        self.model = self.first_model()
        self.model.names, self.model.imgsz = self.data["names"], self.args.imgsz
        self.frozen, self.declared = frozen_paths(self.model, self.args.freeze), declared_frozen(self.model)
        self.args.freeze = None  # ultralytics takes all whose names are alike
        if is_first():
            self.model.info()
            LOGGER.info(f"\n{backbone_card(self.model)}\n{head_card(self.model)}\n")
            if text := branches_text(self.model):
                LOGGER.info(f"{text}\n")
            for paths, epochs in ((self.frozen, self.args.unfreeze_after), (self.declared, 0)):
                if paths:
                    LOGGER.info(f"{frozen_text(self.model, paths, epochs)}\n")
        if self.args.qat:
            insert_rounding(self.model)
            LOGGER.info(f"INT8: {rounded_share(self.model):.1%} of the parameters are rounded while they learn")
        if self.args.teacher and self.run.left == "epochs":
            self.lesson = Lesson(self.run.teacher, self.model, vars(self.args))
            self.lesson.features.adapters.to(self.device)
        if self.args.quad:
            self.model.register_forward_hook(as_loss_of_four)
        checkpoint = self.run.checkpoint
        self.run = replace(self.run, model=None, checkpoint=None, teacher=None)  # which would take memory
        return checkpoint

    def first_model(self) -> DetectionModel:
        """Return the model of the checkpoint that is resumed, or that of the new run."""
        if self.run.checkpoint is not None:
            return build_model(self.run.checkpoint, self.args.resume)
        if self.run.model is None:
            raise ValueError("a new run needs its model")
        return self.run.model

    def get_validator(self) -> Validator | ClassValidator:
        """Return the validator of this run's val split."""
        args = copy(self.args)
        args.data = str(self.save_dir / "data.yaml")
        for name in OWN_OPTIONS:
            delattr(args, name)
        validator = VALIDATORS[args.task]
        return validator(self.test_loader, save_dir=self.save_dir, args=args, _callbacks=self.callbacks)

    def build_optimizer(
        self, model: nn.Module, name: str, lr: float, momentum: float, decay: float, **_: Any
    ) -> torch.optim.Optimizer:
        """Return the optimizer, whose groups `utils/train/groups.py` makes, and say what is learnt how.

        With `custom_l2` the weights of which its penalty speaks have no weight decay. With `rep_optimizer` its steps
        are scaled.
        """
        network, args = unwrap_model(model), self.args
        entries = optimized(network, args.lr_backbone, args.layer_decay, muon=name == "MuSGD")
        fused = self.device.type == "cpu" or (self.device.type == "cuda" and name in FUSED)
        optimizer = make_optimizer(entries, name, lr, momentum, decay, fused)
        if is_first():
            LOGGER.info(f"{groups_table(entries, name, lr, decay)}\n")
        if args.custom_l2:
            self.penalized = penalized_blocks(network)
            self.decay = decay
            without_decay(optimizer, [p for block in self.penalized for p in block.decayed_by_custom_l2()])
        if args.rep_optimizer:
            scale_steps(network, optimizer)
        if self.lesson:
            self.lesson.join(optimizer, lr)
        return optimizer

    def optimizer_step(self) -> None:
        """Take a step down the gradient of the loss and of the penalty of `custom_l2`, after `accumulate` batches.

        After the last batch of an epoch a step is always taken, so that a checkpoint leaves no gradient behind.
        The penalty is no part of the loss that is printed, as weight decay is not. Optimizers of the Adam family scale
        its gradient along with the loss's, which they do not with weight decay: the paper's is SGD.
        """
        self.batches += 1
        if self.batches % self.args.accumulate and self.batches < len(self.train_loader):
            return
        if blocks := [block for block in self.penalized if block.rbr_dense.conv.weight.requires_grad]:
            penalty = torch.stack([block.get_custom_l2() for block in blocks]).sum()
            self.scaler.scale(0.5 * self.decay * penalty).backward()
        add_gradients(self.model.parameters())
        if self.lesson:
            add_gradients(self.lesson.features.adapters.parameters())
        super().optimizer_step()

    def freeze_in(self, epoch: int) -> None:
        """Let what is frozen in an epoch, numbered from 0, not be trained, and the rest be trained."""
        hold(unwrap_model(self.model), [*self.frozen, *self.declared], self.held_in(epoch))

    def held_in(self, epoch: int) -> list[str]:
        """Return the paths of what is frozen in an epoch, numbered from 0."""
        after = self.args.unfreeze_after
        return [*(self.frozen if not after or epoch < after else ()), *self.declared]

    def _model_train(self) -> None:
        """Put the model into training mode, but for norms that are frozen."""
        super()._model_train()
        keep_statistics(unwrap_model(self.model), self.held_in(self.epoch))

    def auto_batch(self) -> int:
        """Return how many pictures a step fit the GPU when all is trained that ever is."""
        if self.device.type != "cuda":
            LOGGER.warning(f"--batch-size -1 measures a GPU, of which there is none: steps of {DEFAULT_BATCH} pictures")
            return DEFAULT_BATCH
        self.freeze_in(self.epochs)
        return self.measured_batch()

    def measured_batch(self) -> int:
        """Return how many pictures a step fit the GPU, as ultralytics measures it."""
        return super().auto_batch()

    def _setup_train(self) -> None:
        """Set up all that the epochs need; a new run that is refused here leaves no folder."""
        try:
            super()._setup_train()
            if self.lesson:
                self.lesson.attach(unwrap_model(self.model), self.ema.ema, self.device)
        except UserError:
            if not self.resume:  # whose folder this process may have made and trained in
                remove_run(self.save_dir)
            raise

    def _build_train_pipeline(self) -> None:
        """Have `optimizer_step` called after every batch: ultralytics would gather gradients beyond the epoch's end."""
        self.args.nbs = self.batch_size
        self.freeze_in(self.epochs)  # what is ever trained, as the optimizer has it
        super()._build_train_pipeline()
        self.freeze_in(0)
        for split, loader in zip(SPLITS, (self.train_loader, self.test_loader), strict=True):
            self.run.splits[split]["objects"] = sum(len(label["cls"]) for label in loader.dataset.labels)
        if self.args.autoanchor and not self.resume:
            refit_anchors(unwrap_model(self.model), self.train_loader.dataset, self.args)
        if self.args.qat and not self.resume:
            first = itertools.islice(self.train_loader, OBSERVED)
            observe(unwrap_model(self.model), (self.preprocess_batch(batch)["img"] for batch in first))
        if is_shared():
            share(self)

    def seed_epoch(self) -> None:
        """Start an epoch from a seed of its own, with nothing carried over, so that it can be run again alike."""
        self.batches = 0
        start_together(self, LOADER_SEED + self.args.seed + self.epoch)
        own = max(RANK, 0) * OTHER_PROCESS
        init_seeds(self.args.seed + 1 + self.epoch + own, deterministic=self.args.deterministic)
        self.train_loader.generator.manual_seed(LOADER_SEED + self.args.seed + self.epoch + own)
        if self.args.image_weights:
            self.draw_pictures()
        self.train_loader.reset()
        if self.args.cache != "ram":
            self.train_loader.dataset.start_anew()
        if self.lesson:
            self.lesson.start_epoch(unwrap_model(self.model), self.epoch, self.epochs)
        self.freeze_in(self.epoch)
        if self.frozen and self.epoch == self.args.unfreeze_after > 0:
            LOGGER.info(f"epoch {self.epoch + 1}: what --freeze held is trained from here on")

    def draw_pictures(self) -> None:
        """Draw the pictures of an epoch by their classes, alike in all processes."""
        maps = from_first(lambda: {"maps": self.maps or [0.0] * self.data["nc"]})["maps"]
        dataset = self.train_loader.dataset
        dataset.drawn = draw(picture_weights(dataset.labels, maps), LOADER_SEED + self.args.seed + self.epoch)

    def validate(self) -> tuple[dict[str, float] | None, float | None]:
        """Validate the EMA, with the statistics of BatchNorm that the first process saves; it has the results alone."""
        copy_from_first(self.ema.ema.buffers())
        found = super().validate()
        if self.args.image_weights and is_first():
            self.maps = self.validator.metrics.box.maps.tolist()
        return found

    def label_loss_items(self, loss_items: Any = None, prefix: str = "train") -> Any:
        """Return losses by the names of their columns, or these names; validation measures none of a teacher."""
        labels = super().label_loss_items(loss_items, prefix)
        taught = {f"val/{name}" for name in self.lesson.names()} if self.lesson else set()
        if isinstance(labels, dict):
            return {label: loss for label, loss in labels.items() if label not in taught}
        return [label for label in labels if label not in taught]

    def save_metrics(self, metrics: dict[str, float]) -> None:
        """Write results.csv anew from all epochs, so that a resumed run has each of them once."""
        seconds = engine.time.time() - self.train_time_start
        self.history.append({"epoch": self.epoch + 1, "time": round(seconds, 2), **plain(metrics)})
        columns = list(self.history[-1])
        lines = [",".join(columns), *(",".join(f"{row.get(c, '')}" for c in columns) for row in self.history)]
        write_text(self.csv, "\n".join(lines) + "\n")

    def save_model(self) -> bool:
        """Write best.pt and epochN.pt when it is their turn, then last.pt.

        A run that is killed between two of them resumes with the epoch before, and writes all of them again.
        """
        model, ema = unwrap_model(self.model), self.ema.ema
        shared = {
            **pack_model(ema),
            "ema": ema.state_dict(),
            "epoch": self.epoch,
            "epochs": self.epochs,
            "fitness": self.fitness,
            "metrics": self.metrics,
        }
        resumable = {
            **shared,
            "model": model.state_dict(),
            "updates": self.ema.updates,
            "optimizer": state_of(self.optimizer),
            "scaler": self.scaler.state_dict(),
            "best_fitness": self.best_fitness,
            "stopper": {"best_fitness": self.stopper.best_fitness, "best_epoch": self.stopper.best_epoch},
            "history": self.history,
            "seed": self.args.seed,
            "batch": self.batch_size,
            "options": self.run.options,
            **({"maps": self.maps} if self.maps else {}),
            "splits": self.run.splits,
            **({"teaching": self.lesson.state()} if self.lesson else {}),
        }
        if self.best_fitness == self.fitness:
            save_checkpoint(shared, self.best)
        if self.save_period > 0 and self.epoch % self.save_period == 0:
            save_checkpoint(shared, self.wdir / f"epoch{self.epoch}.pt")
        save_checkpoint(resumable, self.last)
        return True

    def resume_training(self, ckpt: dict[str, Any] | None) -> None:
        """Continue where `ckpt` stopped: weights, EMA, optimizer, scaler, early stopping and history.

        Raises:
            WeightsError: its tensors or its optimizer are not those of this training.
        """
        if ckpt is None:
            return
        model = unwrap_model(self.model)
        self.ema = ModelEMA(model)
        self.freeze_in(ckpt["epoch"])
        try:
            check_tensors(ckpt["model"], model, "model")
            model.load_state_dict(ckpt["model"])
            self.ema.ema.load_state_dict(ckpt["ema"])  # which `build_model` has checked
            if self.lesson:
                self.lesson.load_state(ckpt["teaching"])
            load_optimizer(self.optimizer, ckpt["optimizer"])
            if ckpt["scaler"]:  # empty after an epoch without mixed precision
                self.scaler.load_state_dict(ckpt["scaler"])
        except (LookupError, TypeError, ValueError, RuntimeError) as e:
            reason = " ".join(str(e).split())
            raise WeightsError(f"{self.args.resume} does not fit the options of its run: {reason[:300]}") from e
        self.ema.updates = ckpt["updates"]
        self.best_fitness = ckpt["best_fitness"]
        self.stopper.__dict__.update(ckpt["stopper"])
        self.history = ckpt["history"]
        self.maps = ckpt.get("maps", [])
        self.start_epoch = ckpt["epoch"] + 1
        if model.end2end:  # its loss goes from one branch to the other, an epoch at a time
            model.criterion = model.init_criterion()
            for _ in range(self.start_epoch):
                model.criterion.update()
        log_other_counts(self.run.splits, ckpt.get("splits", {}))
        if self.run.left == "epochs":
            LOGGER.info(f"Resuming {self.args.resume} with epoch {self.start_epoch + 1} of {self.epochs}")

    def _handle_nan_recovery(self, epoch: int) -> bool:
        """Stop at a loss that is not finite: what went wrong once goes wrong again, and last.pt is still sound."""
        if is_true_of_all(self.loss is None or bool(self.loss.isfinite())):
            return False
        if not is_first():
            raise SystemExit(2)  # the first process says why
        saved = f"{self.last} holds epoch {epoch}" if self.last.exists() else "nothing was saved yet"
        raise UserError(f"{NOT_FINITE} in epoch {epoch + 1}: try a smaller lr0 (--hyp) or another --optimizer; {saved}")

    def _do_train(self) -> None:
        """Train, and validate at the end; a run that was stopped after its last epoch is validated only."""
        if self.run.left == "epochs":
            super()._do_train()
            return
        self._setup_train()
        self.epoch = self.start_epoch - 1
        self.final_eval()
        if self.args.plots and is_first():
            self.plot_metrics()
        self.run_callbacks("on_train_end")

    def final_eval(self) -> None:
        """Validate best.pt, fused, as it will be used; the run is finished then."""
        best = from_first(lambda: read_checkpoint(self.best) if self.best.exists() else {})
        if best:
            LOGGER.info(f"\nValidating {self.best}...")
            self.validator.args.plots = self.args.plots
            self.metrics = self.validator(model=build_model(best, self.best))
        if is_first():
            save_final(self.save_dir, self.epoch + 1, self.metrics)


def of_classes(data: dict[str, Any], single_cls: bool) -> dict[str, Any]:
    """Return a data set with its classes taken for one if `single_cls`."""
    return {**data, **({"nc": 1, "names": {0: "item"}} if single_cls else {})}


def new_model(
    spec: ModelSpec,
    start: DetectionModel | None,
    data: dict[str, Any],
    options: dict[str, Any],
    class_map: Mapping[str, str] = MappingProxyType({}),
) -> DetectionModel:
    """Return the model of a new run: the fused one that `qat` trains, or that of the YAML, as the run's seed has it.

    Args:
        spec: the model YAML.
        start: the model whose weights are the first ones, if any.
        data: what `load_dataset` returned.
        options: of the run.
        class_map: names of its classes to those that they have in `start`, where these differ.

    Raises:
        UserError: it cannot be built, or the weights are another network's.
    """
    data = of_classes(data, options["single_cls"])
    if options["qat"] and start is not None:
        model = fuse_for_training(start, data)
    else:
        init_seeds(options["seed"])
        narrow = start is not None and not start.spec.overparameterize  # weights: branches come after them
        model = create_model(spec.with_branches(None) if narrow else spec, ch=data["channels"], nc=data["nc"])
        warn_of_deploy_form(model)
        if start is not None:
            check_branches(start, spec)
            partners = match_classes(start.names, data["names"], class_map)
            transferred = transfer(start, model, partners)
            LOGGER.info(f"{transferred}\n")
            if narrow and spec.overparameterize:
                model.widen(**spec.overparameterize, trained=model.pretrained_modules() | transferred.modules)
    if options["rep_optimizer"] and start is None:
        start_as_sum(model)
    model.names = data["names"]
    return model


def check_trains(model: DetectionModel, options: dict[str, Any]) -> None:
    """Check the options of a new run that say how a model learns, and which parts of it.

    Raises:
        UserError: the model cannot be trained so.
    """
    if options["rep_optimizer"]:
        check_scales_steps(model, options["optimizer"])
    if options["custom_l2"]:
        penalized_blocks(model)
    check_unfreezing(options)
    frozen_paths(model, options["freeze"])
    backbone_rates(model, options["lr_backbone"], options["layer_decay"])


def check_branches(start: DetectionModel, spec: ModelSpec) -> None:
    """Raise WeightsError where the first weights have branches that the model of a YAML has not."""
    own, wanted = start.spec.overparameterize, spec.overparameterize
    if own and own != wanted:
        other = f"those of {wanted['style']}" if wanted else "none"
        raise WeightsError(
            f"{start.pt_path} was trained with the branches of {own['style']}, the model is to have {other}: give "
            f"--overparameterize {own['style']}"
        )


def warn_of_deploy_form(model: DetectionModel) -> None:
    """Say of backbones in deploy form what their training lacks."""
    for module in model.model:
        if isinstance(module, Backbone) and module.form != "train":
            LOGGER.warning(
                f"{type(module).__name__} is in deploy form, in which it is fine-tuned without its branches and their "
                f"norms: start from the training form if you have it, else take a small lr0"
            )


def fuse_for_training(model: DetectionModel, data: dict[str, Any]) -> DetectionModel:
    """Return the fused form of a checkpoint's model, to fine-tune it on a data set.

    Raises:
        UserError: it cannot be trained or saved in its fused form, or knows other classes.
    """
    weights = model.pt_path
    if model.end2end:
        raise UserError(
            f"--qat trains the fused form, and that of {weights} has lost the branch that its head learns by"
        )
    if (model.nc, model.spec.ch) != (data["nc"], data["channels"]):
        raise UserError(
            f"{weights} knows {model.nc} classes and {model.spec.ch} channels, the data set has {data['nc']} and "
            f"{data['channels']}: --qat fine-tunes for the data that the weights know"
        )
    fused = model.fuse()
    if create_model(model.spec.without_pretrained()).fuse().state_dict().keys() != fused.state_dict().keys():
        raise UserError(f"--qat cannot save {weights} in its fused form: what fuses depends on the weights")
    return fused


def refit_anchors(model: DetectionModel, dataset: Any, args: Any) -> None:
    """Give a head with anchors better ones where its own hardly fit the objects of a data set."""
    head = model.model[-1]
    if not isinstance(head, AnchorDetect):
        return
    limit = AnchorGains(**args.anchor_gains).anchor_t
    found = fit_anchors(head.anchor_sizes.cpu(), head.stride.cpu(), dataset, args.imgsz, limit, seed=args.seed)
    if found is not None:
        head.anchor_sizes.copy_(found)
        model.spec = model.spec.with_anchors(found.flatten(1).tolist())


def penalized_blocks(model: DetectionModel) -> list[RepConv]:
    """Return the blocks that `custom_l2` speaks of: those with branches that are trained.

    Raises:
        UserError: there is none.
    """
    blocks = [m for m in model.modules() if isinstance(m, RepConv) and m.rbr_dense.conv.weight.requires_grad]
    if not blocks:
        raise UserError(
            f"--custom-l2 is for the branches of RepVGG and RepConv, of which {model.spec.name} has none to train: "
            f"leave it out"
        )
    return blocks


def without_decay(optimizer: torch.optim.Optimizer, parameters: list[torch.Tensor]) -> None:
    """Move `parameters` into groups of their own, which are as theirs but have no weight decay."""
    ids = {id(p) for p in parameters}
    for group in [group for group in optimizer.param_groups if group["weight_decay"] > 0]:
        moved = [p for p in group["params"] if id(p) in ids]
        group["params"] = [p for p in group["params"] if id(p) not in ids]
        if moved:
            optimizer.add_param_group({**group, "params": moved, "weight_decay": 0.0})


def state_of(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return the state of an optimizer as a checkpoint keeps it: with an entry for each weight.

    That of a weight without a gradient, such as a frozen one, is empty; so one that is missing is noticed.
    """
    state = optimizer.state_dict()
    weights = sorted(i for group in state["param_groups"] for i in group["params"])
    return {**state, "state": {i: state["state"].get(i, {}) for i in weights}}


def load_optimizer(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Give an optimizer the state of one that was saved.

    Raises:
        ValueError: that one was of another kind, or had weights of other shapes.
    """
    for own, came in zip(optimizer.state_dict()["param_groups"], saved["param_groups"], strict=True):
        for key, value in own.items():
            allowed = {"bool", "NoneType"} if key in BY_DEVICE else {kind_of_setting(value)}
            other = kind_of_setting(came.get(key, "")) not in allowed
            if other or (isinstance(value, tuple) and len(value) != len(came[key])):
                raise ValueError(f"its optimizer has no such {key} as {value!r}")
    tensors = ((i, key, value) for i, state in saved["state"].items() for key, value in state.items())
    for i, key, value in tensors:
        if torch.is_tensor(value) and (not value.is_floating_point() or bool(value.isnan().any())):
            raise ValueError(f"its optimizer has NaN or no fractions in the {key} of weight {i}")
    optimizer.load_state_dict(saved)
    for group in optimizer.param_groups:
        expected = kinds_of_state(type(optimizer), group)
        for weight in group["params"]:
            if weight not in optimizer.state:
                if weight.requires_grad:
                    raise ValueError(f"its optimizer has no state for a weight of shape {tuple(weight.shape)}")
                continue
            state = optimizer.state[weight]
            shapes = [held.shape for held in state.values() if torch.is_tensor(held)]
            fits = all(shape.numel() == 1 or shape == weight.shape for shape in shapes)
            if not fits or (state and {key: type(held) for key, held in state.items()} != expected):
                raise ValueError(f"its optimizer has another state for a weight of shape {tuple(weight.shape)}")


def kinds_of_state(kind: type[torch.optim.Optimizer], group: dict[str, Any]) -> dict[str, type]:
    """Return what an optimizer keeps of each weight of a group, by name, after a step.

    Raises:
        ValueError: this kind of optimizer refuses the settings of the group, such as a negative lr.
    """
    known = inspect.signature(kind).parameters.keys() & group.keys() - {"params", *BY_DEVICE}
    settings: dict[str, Any] = {key: tuple(group[key]) if isinstance(group[key], list) else group[key] for key in known}
    weight = nn.Parameter(torch.zeros(2, 2))
    weight.grad = torch.zeros(2, 2)
    trial = kind([weight], **settings)
    trial.step()
    return {key: type(held) for key, held in trial.state[weight].items()}


def kind_of_setting(value: object) -> str:
    """Return which kind of setting of an optimizer a value is; a checkpoint has lists for tuples."""
    kinds = {int: "number", float: "number", tuple: "list"}
    return kinds.get(type(value), type(value).__name__)


def amp_is_safe(model: nn.Module) -> bool:
    """Return whether the model's raw outputs on one picture are finite and alike with and without mixed precision.

    ultralytics compares boxes of a network that it downloads; this compares the network that is going to be trained.
    """
    device = next(model.parameters()).device
    if device.type == "cpu":
        return False
    probe = ModelEMA(model).ema  # a copy in eval mode
    picture = torch.rand(1, probe.yaml["channels"], 256, 256, device=device)
    with torch.no_grad():
        reference = tree_leaves(probe(picture)[1])
        with autocast(enabled=True, device=device.type):
            mixed = [output.float() for output in tree_leaves(probe(picture)[1])]
    alike = (torch.allclose(a, b, atol=0.1, rtol=0.1) for a, b in zip(reference, mixed, strict=True))
    safe = all(bool(output.isfinite().all()) for output in mixed) and all(alike)
    LOGGER.info(
        f"AMP: {'outputs agree, training in mixed precision' if safe else 'outputs differ, training in float32'}"
    )
    return safe


def save_yaml(file: str | Path, data: dict[str, Any]) -> None:
    """Write the options of a run as ultralytics does, but as a whole: a kill leaves the old file or the new one."""
    kept = (str, int, float, bool, list, tuple, dict, type(None))
    data = {key: value if isinstance(value, kept) else str(value) for key, value in data.items()}
    write_text(Path(file), yaml.safe_dump(plain(data), sort_keys=False, allow_unicode=True))


patch_ultralytics(check_amp=amp_is_safe, save_yaml=save_yaml, add_callbacks=add_loggers)
