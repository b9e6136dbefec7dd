"""Check published classification weights: top-1 and top-5 on a folder of pictures, and that both forms agree.

    python -m utils.check_weights --arch RepVGG/A0 --weights RepVGG-A0-train.pth --data imagenet/val
    python -m utils.check_weights --arch RepVGG/A0 --weights RepVGG-A0-deploy.pth --data imagenet --mode deploy
    python -m utils.check_weights --arch RepVGG/A0 --weights RepVGG-A0-train.pth --data imagenet --mode check

The folder holds a folder of pictures per class, in the order of their names, or has such a folder inside, called `val`.
`--mode train` runs the network as its weights have it, `deploy` its fused form, and `check` both, on the same pictures:
where the fused one's logits are further from the unfused one's in float64 than float32 explains, the exit code is 1. A
picture that cannot be read is skipped, counted and named at the end, and makes the exit code 1 as well. `--save FILE`
writes the deploy form under the names of the network's authors, if nothing was wrong. In Python:
`check_weights.run(arch="RepVGG/A0", ...)`.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.datasets.folder import IMG_EXTENSIONS
from ultralytics.utils import LOGGER, TQDM

from models import create_backbone, switch_to_deploy
from models.backbones.names import split_name
from models.errors import UserError, WeightsError, first_line
from utils import cli
from utils.checkpoint.published import HEAD_NAMES, check_target, count_classes, write_published
from utils.data.pictures import Unreadable, read_header
from utils.prove.logits import LogitDifference
from utils.sizes import MAX_IMGSZ
from utils.text import printable

MODE_TRAIN, MODE_DEPLOY, MODE_CHECK = "train", "deploy", "check"
MODE_FORMS = {
    MODE_TRAIN: (MODE_TRAIN,),
    MODE_DEPLOY: (MODE_DEPLOY,),
    MODE_CHECK: (MODE_TRAIN, MODE_DEPLOY),
}  # that each mode runs
DEFAULT_SIDE, DEFAULT_CLASSES = 224, 1000
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as RGB in [0, 1]
INTERPOLATIONS = {
    mode.value: mode for mode in (transforms.InterpolationMode.BILINEAR, transforms.InterpolationMode.BICUBIC)
}
NAMED = 20  # unreadable pictures that are named


@dataclass
class Score:
    """What one form of the network has got right so far."""

    top1: int = 0
    top5: int = 0
    not_finite: int = 0  # pictures with logits that are nan or infinite
    seconds: float = 0.0  # in the network

    def add(self, logits: Tensor, labels: Tensor, seconds: float) -> None:
        """Count a batch: logits (B, classes) and labels (B,)."""
        best = logits.topk(min(5, logits.shape[1])).indices
        hits = best == labels[:, None]
        self.top1 += int(hits[:, 0].sum())
        self.top5 += int(hits.any(dim=1).sum())
        self.not_finite += int((~logits.isfinite().all(dim=1)).sum())
        self.seconds += seconds


@dataclass
class Result:
    """What a check found; `as_dict` is the content of `--output`."""

    arch: str
    weights: str  # what was loaded
    mode: str
    imgsz: int
    crop_pct: float
    classes: int
    pictures: int = 0  # that were read
    scores: dict[str, Score] = field(default_factory=dict)
    difference: LogitDifference | None = None
    unreadable: dict[str, str] = field(default_factory=dict)  # file to reason

    @property
    def ok(self) -> bool:
        """Whether every picture was read, all logits are finite, and the forms agree, if they were compared."""
        finite = not any(score.not_finite for score in self.scores.values())
        return finite and not self.unreadable and (self.difference is None or self.difference.ok)

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON takes it, with percentages and pictures per second."""
        forms = {form: self.rates(score) for form, score in self.scores.items()}
        difference = {**asdict(self.difference), "tolerance": self.difference.tolerance} if self.difference else None
        if difference and not math.isfinite(difference["relative"]):
            difference["relative"] = None
        return {**asdict(self), "scores": forms, "difference": difference, "ok": self.ok}

    def rates(self, score: Score) -> dict[str, float]:
        """Return top-1 and top-5 in percent, and pictures per second in the network."""
        count = max(self.pictures, 1)
        return {
            "top1": 100 * score.top1 / count,
            "top5": 100 * score.top5 / count,
            "images_per_second": self.pictures / score.seconds if score.seconds else 0.0,
        }


# The command ----------------------------------------------------------------------------------------------------------
def make_parser() -> cli.Parser:
    """Return the options."""
    parser = cli.Parser(prog="python -m utils.check_weights", description=__doc__)
    add = parser.add_argument
    add("--arch", "-a", metavar="NAME", help="the network, such as RepVGG/A0 or timm/resnet18")
    add("--weights", metavar="FILE", help="its published classification weights")
    add("--data", metavar="FOLDER", help="a folder of pictures per class, or the folder whose val is one")
    add("--mode", choices=tuple(MODE_FORMS), default=MODE_TRAIN, help="as loaded, fused, or both compared")
    add("--imgsz", "--img", "--img-size", type=cli.image_side, help="side in pixels; default: the network's, or 224")
    add("--crop-pct", type=cli.fraction, default=0.875, help="imgsz over the length the shorter side is scaled to")
    add("--interpolation", choices=tuple(INTERPOLATIONS), default="bilinear", help="how pictures are scaled")
    add(
        "--mean",
        nargs=3,
        type=cli.finite_float,
        default=[*MEAN],
        metavar="X",
        help="of the pictures' RGB",
    )
    add("--std", nargs=3, type=cli.positive_float, default=[*STD], metavar="X", help="of the pictures' RGB")
    add("--num-classes", type=cli.positive_int, help="logits; default: those of the weights, or 1000")
    add("--batch-size", type=cli.positive_int, default=64, help="pictures a step")
    add("--device", type=cli.device, default="", help="cpu, 0 or mps; empty: the first GPU or the CPU")
    add(
        "--workers", type=cli.non_negative_int, default=min(8, os.cpu_count() or 1), help="processes that read pictures"
    )
    add("--output", metavar="FILE", help="write the result as JSON")
    add("--save", metavar="FILE", help="write the deploy form, for --mode deploy or check: .pth, .pt or .safetensors")
    cli.add_consents(parser)
    return parser


def run(**options: Any) -> Result:
    """Check from Python: `run(arch="RepVGG/A0", weights="RepVGG-A0-train.pth", data="imagenet", mode="check")`.

    Raises:
        UserError: an option, the weights or the folder is wrong.
    """
    return check(make_parser().from_keywords(**options))


def main(args: argparse.Namespace) -> int:
    """Check, report, write; return the exit code: 1 if forms disagree or a picture could not be read."""
    return 0 if check(args).ok else 1


def check(args: argparse.Namespace) -> Result:
    """Run the network on all pictures and report what came out."""
    check_arguments(args)
    cli.log_options("check", args)
    cli.take_consents(args)
    classes, pictures = find_pictures(Path(args.data))
    check_class_count(args.num_classes or len(classes), len(classes), args.data)  # before a network of many is built
    network = load_classifier(args)
    check_class_count(count_logits(network), len(classes), args.data)
    imgsz = args.imgsz or published_side(network, args.arch)
    if imgsz > args.crop_pct * MAX_IMGSZ:
        raise UserError(f"--crop-pct {args.crop_pct:g} would scale pictures to more than {MAX_IMGSZ} pixels a side")
    result = Result(args.arch, str(network.weights_report), args.mode, imgsz, args.crop_pct, len(classes))
    check_takes_picture(network, imgsz, args.arch)
    run_forms(make_forms(network, args), make_loader(pictures, imgsz, args), result)
    LOGGER.info(cli_lines(result_lines(result)))
    if args.output:
        Path(args.output).write_text(json.dumps(result.as_dict(), indent=1) + "\n", encoding="utf-8")
        LOGGER.info(printable(f"Results saved to {args.output}"))
    if args.save:
        save_deploy_form(network, args, result)
    return result


def save_deploy_form(network: Any, args: argparse.Namespace, result: Result) -> None:
    """Write the deploy form of a network that was checked and found to be right, and log what was written."""
    if not result.ok:
        LOGGER.warning(printable(f"{args.save} is not written, since the check has failed"))
        return
    kind, arch = split_name(args.arch)
    read = partial(create_backbone, kind, arch, num_classes=count_logits(network))
    LOGGER.info(printable(write_published(network, Path(args.save), lambda file: read(weights=file))))


def check_class_count(logits: int, folders: int, data: str) -> None:
    """Raise UserError where the network has another number of classes than there are folders."""
    if logits != folders:
        raise UserError(f"{data} has {folders} folders of classes, but the network has {logits} classes")


def check_arguments(args: argparse.Namespace) -> None:
    """Raise UserError for what is missing or cannot be written, before the long work starts."""
    for option, what in (("arch", "the network, such as RepVGG/A0"), ("weights", "a file"), ("data", "a folder")):
        if not getattr(args, option):
            raise UserError(f"--{option} is needed: {what}")
    output = Path(args.output or "result.json")
    if output.is_dir() or not output.parent.is_dir() or (output.is_symlink() and not output.exists()):
        raise UserError(f"--output takes a file in a folder that exists, not {output}")
    if args.save and args.mode == MODE_TRAIN:
        raise UserError("--save writes the deploy form: --mode check compares it with the training form before")
    if args.save:
        check_target(Path(args.save), Path(args.weights), "--save")


# The network ----------------------------------------------------------------------------------------------------------
def load_classifier(args: argparse.Namespace) -> Any:
    """Return the classification network with its weights, in eval mode.

    Raises:
        UserError: no such network, or its weights have the deploy form and the mode needs the other.
        WeightsError: the file is no such network's, or holds no classification head.
    """
    kind, arch = split_name(args.arch)
    count = args.num_classes or count_classes(kind, args.weights) or DEFAULT_CLASSES
    network = create_backbone(kind, arch, num_classes=count, weights=args.weights)
    loaded = network.weights_report
    if loaded.deploy and args.mode != MODE_DEPLOY:
        raise UserError(
            f"{args.weights} has the deploy form, which --mode {args.mode} cannot start from: --mode deploy"
        )
    head = [name for name in loaded.missing if HEAD_NAMES.match(name)]
    if head:
        raise WeightsError(f"{args.weights} holds no classification head of {count} classes: {head[0]} is missing")
    return network.eval()


@torch.no_grad()
def count_logits(network: Any) -> int:
    """Return how many logits a classification network gives."""
    return network(network.example_input()).shape[1]


def published_side(network: Any, arch: str) -> int:
    """Return the side of the pictures that a network was published for: its only one, the one in its name, or 224."""
    size = getattr(network, "size", None)
    in_name = re.search(r"(\d{3})$", arch)
    return int(size[0]) if size else int(in_name[1]) if in_name else DEFAULT_SIDE


@torch.no_grad()
def check_takes_picture(network: Any, imgsz: int, arch: str) -> None:
    """Raise UserError for a size of picture that a network does not take."""
    example = network.example_input()
    try:
        network(example.new_zeros(1, example.shape[1], imgsz, imgsz))
    except (RuntimeError, ValueError, AssertionError) as error:
        raise UserError(f"{arch} takes no pictures of {imgsz}x{imgsz}: {first_line(error)}") from error


def make_forms(network: nn.Module, args: argparse.Namespace) -> dict[str, nn.Module]:
    """Return the forms that the mode runs, on the device."""
    device = find_device(args.device)
    forms = {form: switch_to_deploy(network) if form == MODE_DEPLOY else network for form in MODE_FORMS[args.mode]}
    return {form: module.to(device).eval() for form, module in forms.items()}


def find_device(name: str) -> torch.device:
    """Return the device that `--device` means, on which float32 is float32: TF32 would hide what is compared."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    first, _, _ = name.partition(",")
    if first.isdecimal():
        return torch.device(f"cuda:{first}")
    return torch.device(first or ("cuda:0" if torch.cuda.is_available() else "cpu"))


# The pictures ---------------------------------------------------------------------------------------------------------
def find_pictures(folder: Path) -> tuple[list[str], list[tuple[Path, int]]]:
    """Return the names of the classes, and all pictures with the number of their class.

    Raises:
        UserError: there is no such folder, or it holds no folders with pictures.
    """
    if not folder.is_dir():
        raise UserError(f"--data takes a folder of pictures, but there is no folder {folder}")
    root = folder / "val" if (folder / "val").is_dir() else folder
    classes = sorted(path.name for path in root.iterdir() if path.is_dir())
    if not classes:
        raise UserError(f"{root} holds no folders, expected one per class with its pictures in it")
    pictures = [
        (path, label)
        for label, name in enumerate(classes)
        for path in sorted((root / name).rglob("*"))
        if path.suffix.lower() in IMG_EXTENSIONS and path.is_file()
    ]
    if not pictures:
        raise UserError(f"the {len(classes)} folders in {root} hold no pictures")
    return classes, pictures


class Pictures(Dataset):
    """Pictures as (3, imgsz, imgsz) with their labels; as a reason those that cannot be read."""

    def __init__(self, pictures: Sequence[tuple[Path, int]], transform: Callable[[Image.Image], Tensor]) -> None:
        self.pictures, self.transform = pictures, transform

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> tuple[Tensor | None, int, str, str]:
        """Return (picture, label, file, why there is no picture)."""
        path, label = self.pictures[index]
        try:
            return self.transform(read_rgb(path)), label, str(path), ""
        except Unreadable as error:
            return None, label, str(path), str(error)


def read_rgb(path: Path) -> Image.Image:
    """Return a picture as RGB.

    Raises:
        Unreadable: it is no picture, it is damaged, or it is far too large.
    """
    read_header(path)
    try:
        with Image.open(path) as picture:
            return picture.convert("RGB")
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise Unreadable("damaged picture") from error


def make_transform(imgsz: int, args: argparse.Namespace) -> transforms.Compose:
    """Return what makes a picture the network's input: scaled, its centre cut out, normalized."""
    mode = INTERPOLATIONS[args.interpolation]
    return transforms.Compose(
        [
            transforms.Resize(round(imgsz / args.crop_pct), mode),
            transforms.CenterCrop(imgsz),
            transforms.ToTensor(),
            transforms.Normalize(args.mean, args.std),
        ]
    )


def collate(samples: Sequence[Any]) -> tuple[Tensor | None, Tensor, dict[str, str]]:
    """Return pictures (B, 3, H, W) with their labels (B,), and the reasons of those that cannot be read, by file."""
    good = [sample for sample in samples if sample[0] is not None]
    bad = {name: reason for picture, _, name, reason in samples if picture is None}
    labels = torch.tensor([label for _, label, _, _ in good])
    return torch.stack([sample[0] for sample in good]) if good else None, labels, bad


def make_loader(pictures: Sequence[tuple[Path, int]], imgsz: int, args: argparse.Namespace) -> DataLoader:
    """Return batches of all pictures, in their order."""
    data = Pictures(pictures, make_transform(imgsz, args))
    workers = min(args.workers, -(-len(data) // args.batch_size))
    return DataLoader(data, args.batch_size, num_workers=workers, collate_fn=collate)


# Measuring ------------------------------------------------------------------------------------------------------------
@torch.inference_mode()
def run_forms(forms: dict[str, nn.Module], loader: DataLoader, result: Result) -> None:
    """Run every form on every batch, and put what comes out into `result`."""
    device = next(next(iter(forms.values())).parameters()).device
    result.scores = {form: Score() for form in forms}
    result.difference = LogitDifference() if len(forms) > 1 else None
    exact = in_float64(forms[MODE_TRAIN]) if result.difference is not None else None
    for pictures, labels, bad in TQDM(loader, desc=f"checking {result.arch}"):
        result.unreadable.update(bad)
        if pictures is None:
            continue
        if not result.pictures:  # a form's first run is slow
            _ = [network(pictures[:1].to(device)) for network in forms.values()]
        result.pictures += len(labels)
        logits = {}
        for form, network in forms.items():
            logits[form], seconds = timed(network, pictures.to(device))
            result.scores[form].add(logits[form], labels, seconds)
        if result.difference is not None and exact is not None:
            result.difference.add(logits[MODE_TRAIN], logits[MODE_DEPLOY], partial(exact, pictures))
    if not result.pictures:
        raise UserError(f"none of the {len(result.unreadable)} pictures can be read")


def in_float64(network: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    """Return what computes a network's logits in float64 for some pictures of a batch, by their numbers."""
    exact = copy.deepcopy(network).double()
    device = next(exact.parameters()).device
    return lambda pictures, numbers: exact(pictures[numbers].to(device).double()).cpu()


def timed(network: nn.Module, pictures: Tensor) -> tuple[Tensor, float]:
    """Return logits (B, classes) on the CPU, and the seconds until they were there."""
    start = time.perf_counter()
    logits = network(pictures).float().cpu()  # which waits for a GPU
    return logits, time.perf_counter() - start


# Output ---------------------------------------------------------------------------------------------------------------
def result_lines(result: Result) -> Iterator[str]:
    """Yield what came out, a line each."""
    yield f"weights: {result.weights}"
    yield f"{result.pictures} pictures of {result.classes} classes, {result.imgsz}x{result.imgsz}"
    yield f"{'form':<8}{'top-1 %':>9}{'top-5 %':>9}{'images/s':>10}"
    for form, score in result.scores.items():
        rates = result.rates(score)
        yield f"{form:<8}{rates['top1']:>9.3f}{rates['top5']:>9.3f}{rates['images_per_second']:>10.1f}"
    for form, score in result.scores.items():
        if score.not_finite:
            yield f"{form}: the logits of {score.not_finite} pictures are NOT FINITE, so that its figures mean nothing"
    if (difference := result.difference) is not None:
        verdict = (
            "the forms agree"
            if difference.ok
            else f"the forms DISAGREE, as {difference.beyond} are further from float64 than rounding explains"
        )
        yield (
            f"logits are {difference.relative:.1e} apart, relative to the largest of a picture, and those of float32 "
            f"and float64 {difference.rounding:.1e}; "
            f"{difference.other_top1} pictures have another best class: {verdict}"
        )
    if result.unreadable:
        yield f"{len(result.unreadable)} of {result.pictures + len(result.unreadable)} pictures could not be read:"
        yield from (f"  {path}: {reason}" for path, reason in list(result.unreadable.items())[:NAMED])
        if len(result.unreadable) > NAMED:
            yield f"  and {len(result.unreadable) - NAMED} more"


def cli_lines(lines: Iterator[str]) -> str:
    """Return lines as one text, with whatever a terminal would take as a command made visible."""
    return "\n".join(map(printable, lines))


if __name__ == "__main__":
    sys.exit(cli.run_script(main, make_parser()))
