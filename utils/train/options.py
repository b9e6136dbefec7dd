"""The options of train.py, by topic."""

from __future__ import annotations

from models.blocks.branches import STYLES
from models.spec import TASKS
from utils import cli
from utils.train.loggers import NO_LOGGER, SERVICES
from utils.train.run import CLASSIFY_HYP, HYP, OPTIMIZERS
from utils.train.teaching.features import FEATURE_LOSSES
from utils.train.teaching.imitation import TOKEN_MIXER

GENERATIONS = 300  # of --evolve, without a number


def training_parser(description: str = "") -> cli.Parser:
    """Return the options of train.py, whose names and meanings are YOLOv5's.

    Those without a default have it from the recipe.

    Args:
        description: what `--help` says above them; without one there is no `--help`.
    """
    parser = cli.Parser(prog="train.py", description=description, add_help=bool(description))
    add = parser.add_argument
    add("--weights", default="", help="checkpoint to start from; empty: from scratch")
    add("--class-map", default="", help="YAML of classes that --weights call otherwise: 'own name: their name'")
    add("--cfg", default="", help="model YAML, timm:NAME, ultralytics:NAME; empty: that of --weights")
    add("--data", default="", help="data set YAML, a path or a name in data; class folders; empty: built in")
    add("--allow-partial", action="store_true", help="load whatever fits of the weights that the backbone's row names")
    add("--hyp", default="", help=f"recipe YAML; empty: {HYP}, {CLASSIFY_HYP}, or one for the built-in set")
    add("--epochs", type=cli.positive_int, help="passes over the training pictures")
    add("--batch-size", type=batch_size, dest="batch", help="pictures a step; -1: what fits the GPU")
    add("--accumulate", type=cli.positive_int, default=1, help="batches a step of the optimizer")
    side = {"nargs": "+", "type": cli.image_side, "action": cli.OneSide}
    add("--imgsz", "--img", "--img-size", **side, help="side of the training pictures in pixels")
    add("--rect", action="store_true", help="group training pictures by shape")
    add("--resume", nargs="?", const=True, default=False, help="continue this last.pt, or the newest run's")
    add("--nosave", action="store_true", help="write checkpoints after the last epoch only")
    add("--noval", action="store_true", help="validate after the last epoch only")
    add("--noautoanchor", action="store_true", help="keep the anchors of the YAML, however they fit the objects")
    add("--label-smoothing", type=cli.fraction, help="of classes, and of class targets with anchors; else the recipe's")
    add("--noplots", action="store_true", help="write no pictures")
    add("--cache", nargs="?", const="ram", choices=["ram", "disk"], help="keep decoded pictures in memory, or on disk")
    add("--device", type=cli.devices, default="", help="cpu, 0, mps; 0,1 or cpu,cpu: a process each; empty: a GPU")
    restarts = "with several devices: start again from last.pt so often when a process fails"
    add("--max-restarts", type=cli.non_negative_int, default=0, help=restarts)
    add("--image-weights", action="store_true", help="show pictures of rare and of hard classes more often")
    add("--quad", action="store_true", help="join four pictures to one of twice the side, or enlarge one, by chance")
    add("--multi-scale", action="store_true", help="vary the image size by +/- 50 %%")
    add("--task", choices=TASKS, help="that of the YAML's head; another one is an error")
    add("--mask-ratio", type=cli.positive_int, default=4, help="masks are learnt at this part of the picture's size")
    add("--no-overlap", action="store_true", help="masks may overlap, which takes more memory; else small ones win")
    add("--single-cls", action="store_true", help="treat all classes as one, 'item'")
    add("--workers", type=cli.non_negative_int, default=8, help="loader processes on a GPU")
    add("--project", default="runs/train", help="folder of the runs")
    add("--name", default="exp", help="name of the run; cfg: the YAML's name")
    add("--exist-ok", action="store_true", help="write into an existing run's folder")
    add("--patience", type=cli.non_negative_int, default=100, help="epochs without a better one before stopping")
    add("--save-period", type=int, default=-1, help="also keep every Nth epoch's checkpoint")
    branches = "train convolutions with branches, which fusing takes away; empty: as the YAML says"
    add("--overparameterize", choices=STYLES, help=branches)
    add("--qat", action="store_true", help="fine-tune --weights in their fused form, with the rounding of INT8")
    add("--sync-bn", action="store_true", help="take the statistics of BatchNorm over all processes")
    add("--seed", type=cli.non_negative_int, default=0, help="of all random numbers")
    for add_more in (add_teacher, add_learning, cli.add_font, cli.add_consents, add_comforts, add_foreign):
        add_more(parser)
    return parser


def add_teacher(parser: cli.Parser) -> None:
    """Add the flags of what a training learns from beside the labels."""
    add = parser.add_argument
    add("--teacher", help="learn from a checkpoint, the backbone of a YAML or timm:NAME, or ema: the run's own average")
    add("--teacher-weights", help="file of weights for the backbone of --teacher, where that is a YAML or timm:NAME")
    add("--teacher-loss", choices=FEATURE_LOSSES, default="cwd", help="of its feature maps")
    add("--teacher-weight", type=cli.positive_float, default=1.0, help="factor of its losses")
    add("--teacher-off", type=cli.non_negative_int, default=0, help="last epochs without it, as close_mosaic has")
    imitate = "have modules of --teacher teach those of the same part, by the last word of their names"
    add("--imitate", nargs="?", const=TOKEN_MIXER, help=f"{imitate}; {TOKEN_MIXER} when none is given")


def add_learning(parser: cli.Parser) -> None:
    """Add the options that say how the weights of a model are learnt, and which are not."""
    add = parser.add_argument
    add("--optimizer", type=optimizer, choices=OPTIMIZERS, help="of the recipe, or of the backbone's family")
    add("--cos-lr", action="store_true", default=None, help="cosine instead of linear learning rate")
    frozen = "not trained: backbone, neck, a number of rows from the first, or names: backbone.stages.0-1, 4.cv1"
    add("--freeze", nargs="+", default=[], help=frozen)
    thawing = "epochs after which what --freeze names is trained; 0: never"
    add("--unfreeze-after", type=cli.non_negative_int, default=0, help=thawing)
    add("--lr-backbone", type=cli.positive_float, default=1.0, help="factor of the learning rate of the backbone")
    decay = "factor of the learning rate from block to block of the backbone, from its last one to the picture"
    add("--layer-decay", type=cli.positive_fraction, default=1.0, help=decay)
    add("--custom-l2", action="store_true", help="RepVGG's L2 on fused kernels instead of weight decay; for SGD")
    add("--rep-optimizer", action="store_true", help="learn as with RepVGG's branches, without any; SGD or AdamW")


def add_comforts(parser: cli.Parser) -> None:
    """Add the options of what is done beside a training."""
    add = parser.add_argument
    report = "write a report on the data set before training, or only that"
    add("--report", nargs="?", const="first", choices=["first", "only"], help=report)
    evolution = f"search for better hyper-parameters in so many trainings, {GENERATIONS} by default"
    add("--evolve", nargs="?", type=cli.positive_int, const=True, default=False, metavar="N", help=evolution)
    services = "services that follow the training; by default none"
    add("--logger", nargs="+", default=[], choices=[*SERVICES, NO_LOGGER], help=services)


def add_foreign(parser: cli.Parser) -> None:
    """Add the flags of YOLOv5's train.py that do not apply here."""
    parser.refuse("--evolve_population", reason="give the recipe to start from with --hyp", values=1)
    parser.refuse("--resume_evolve", reason="give the folder of the search to --resume", values=1)
    parser.refuse("--bucket", "--upload_dataset", reason="nothing is sent anywhere", values="?")
    parser.ignore("--local_rank", "--local-rank", reason="torchrun gives it in the environment", values=1)
    wandb = "--logger wandb reads what it needs from the environment, such as WANDB_ENTITY"
    parser.ignore("--entity", "--bbox_interval", "--artifact_alias", reason=wandb, values=1)
    ndjson = "losses and accuracy go to results.csv in the folder of the run, and to the services of --logger"
    parser.ignore("--ndjson-console", "--ndjson-file", reason=ndjson)


def batch_size(text: str) -> int:
    """Return a `--batch-size`: a positive number, or -1."""
    return -1 if text == "-1" else cli.positive_int(text)


def optimizer(text: str) -> str:
    """Return the name of an optimizer as it is written, whatever the case of its letters."""
    return next((name for name in OPTIMIZERS if name.lower() == text.lower()), text)
