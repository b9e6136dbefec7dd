"""Turn a data set of another tool into one that train.py reads: pictures, label files and data.yaml.

    python -m utils.convert_data coco                                     # a folder with annotations/instances_*.json
    python -m utils.convert_data VOCdevkit/VOC2012 --to voc2012           # Annotations/*.xml, ImageSets/Main/*.txt
    python -m utils.convert_data labelme --split 0.7 0.2 0.1              # a JSON file for each picture
    python -m utils.convert_data train.json val.json --images pictures --task segment --link

Formats: COCO JSON (and LVIS), Pascal VOC, LabelMe, CreateML, Open Images CSV. Splits are those of the source; where it
has none, they are drawn. What is left out or changed is counted and named at the end, and in conversion.json. The
source is only read, and the new folder appears when all of it is written.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from ultralytics.utils import LOGGER, TQDM

from models.errors import UserError
from models.files import why_no_folder
from utils import cli
from utils.convert_data.annotations import Losses
from utils.convert_data.collect import assign_classes, assign_splits, collect
from utils.convert_data.formats import READERS, find_source
from utils.convert_data.rows import Wanted
from utils.convert_data.source import PictureFinder
from utils.convert_data.write import DATA, REPORT, check_space, check_target, finish, new_folder, table, write_dataset
from utils.data.description import read_names
from utils.data.labels import converted_folder
from utils.data.pictures import LIMIT, allow_megapixels
from utils.text import quote


def make_parser() -> cli.Parser:
    """Return the options."""
    parser = cli.Parser(prog="python -m utils.convert_data", description=__doc__)
    add = parser.add_argument
    add("source", nargs="*", metavar="SOURCE", help="the folder of a data set, or files with its labels")
    add("--to", default="", metavar="FOLDER", help="the new folder; empty: beside SOURCE, with -yolo behind its name")
    add("--format", default="auto", choices=["auto", *READERS], help="of the labels; auto: as their files look")
    add("--images", default="", metavar="FOLDER", help="where the pictures are; empty: in the folder of the source")
    add("--task", default="detect", choices=("detect", "segment"), help="write boxes, or outlines where there are any")
    add(
        "--split",
        nargs="+",
        type=cli.fraction,
        default=[],
        metavar="PART",
        help="divide the pictures anew into train, val and test, such as 0.7 0.2 0.1",
    )
    add("--names", nargs="+", default=[], help="these classes alone, in this order; or a data set YAML that has them")
    add("--keep", nargs="+", default=[], choices=("difficult", "crowd"), help="objects that are left out otherwise")
    add("--copy", action="store_true", help="copy the pictures, as is done without --link")
    add("--link", action="store_true", help="make links to the pictures instead of copies")
    add("--megapixels", type=cli.megapixels, default=LIMIT["megapixels"], help="largest pictures")
    return parser


def main(args: argparse.Namespace) -> Path:
    """Convert as `args` say and return the YAML of the new data set."""
    sources = [Path(word) for word in args.source]
    if not sources:
        raise UserError("name a data set, a folder or files with labels: python -m utils.convert_data FOLDER")
    if args.link and args.copy:
        raise UserError("give --link or --copy, not both")
    allow_megapixels(args.megapixels)
    check_parts(args.split)
    target = Path(args.to) if args.to else converted_folder(sources[0].absolute())
    check_target(target)
    wanted_names = classes_of(args.names)
    if args.images and (problem := why_no_folder(args.images)):
        raise UserError(f"--images {args.images} {problem}")
    form, source = find_source(sources, "" if args.format == "auto" else args.format)
    LOGGER.info(f"{form.name}: {len(source.files)} files in {' and '.join(map(str, source.roots))}")

    losses, reader = Losses(), READERS[form.key]
    roots = [Path(args.images).absolute()] if args.images else source.roots
    wanted = Wanted(args.task == "segment", "crowd" in args.keep, "difficult" in args.keep)
    read = TQDM(reader.read(source, losses), desc="reading")
    pictures = collect(read, PictureFinder(roots), wanted, losses)
    names = assign_classes(pictures, list(source.classes), reader.all_classes, wanted_names, losses)
    said = assign_splits(pictures, args.split, roots[0], losses)
    if not args.link:
        check_space(pictures, target)
    with new_folder(target) as folder:
        report = {
            "source": [str(path) for path in sources],
            "format": form.key,
            "task": args.task,
            "splits_drawn": said,
        }
        report |= write_dataset(folder, pictures, names, args.link, losses)
        finish(folder, {**report, "losses": losses.as_dict()}, names)
    LOGGER.info(f"\n{table(report, losses)}")
    if said:
        LOGGER.info(f"Splits: {said}")
    data = target / DATA
    LOGGER.info(f"\nSaved {target}, what was lost is listed in {REPORT}\nTrain: python train.py --data {quote(data)}")
    return data


def check_parts(parts: list[float]) -> None:
    """Raise UserError unless `--split` is empty or names two or three parts of a whole."""
    if parts and (len(parts) not in (2, 3) or abs(sum(parts) - 1) > 1e-6 or not parts[0] or not parts[1]):
        given = " ".join(f"{part:g}" for part in parts)
        raise UserError(f"--split takes two or three parts that add up to 1, such as 0.8 0.2, not {given}")


def classes_of(words: list[str]) -> list[str]:
    """Return the classes that `--names` says, by a data set YAML or by themselves."""
    if len(words) == 1 and Path(words[0]).suffix.lower() in (".yaml", ".yml"):
        return list(read_names(Path(words[0])).values())
    return words


def run(source: str | Path | list[str | Path], **options: Any) -> Path:
    """Convert with the options of the command line as keywords: `run("coco", to="coco-yolo", link=True)`."""
    args = make_parser().from_keywords(**options)
    args.source = source if isinstance(source, list) else [source]
    return main(args)


if __name__ == "__main__":
    sys.exit(cli.run_script(main, make_parser()))
