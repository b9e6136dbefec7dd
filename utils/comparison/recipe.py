"""What trainings that are compared have in common: data set, recipe, and the sizes that the recipe gives."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from models.errors import UserError
from utils import cli
from utils.data.description import BUILT_IN, read_yaml
from utils.paths import find_file
from utils.train.run import HYPS

RECIPE = {"epochs": 100, "imgsz": 640, "batch": 16}  # where neither the command line nor the recipe says another number


def fill_in(args: argparse.Namespace) -> dict[str, Any]:
    """Give the options data, hyp, imgsz and batch_size the values that the trainings will have; return the recipe.

    Without a data set it is the built-in one, with its recipe. Paths become absolute ones.

    Raises:
        UserError: a file is not there, or the recipe is wrong; or two data sets are one.
    """
    hyp = args.hyp or ("" if args.data else HYPS["detect"][1])
    args.hyp = str(find_file(hyp, "data/hyps").resolve()) if hyp else ""
    data = [str(find_file(one, "data").resolve()) for one in cli.as_list(args.data or BUILT_IN["detect"])]
    if twice := next((one for i, one in enumerate(data) if one in data[:i]), None):
        raise UserError(f"--data names {twice} twice")
    args.data = data if len(data) > 1 else data[0]
    recipe = {**RECIPE, **(read_yaml(Path(args.hyp)) if args.hyp else {})}
    args.imgsz, args.batch_size = args.imgsz or recipe["imgsz"], args.batch_size or recipe["batch"]
    return recipe
