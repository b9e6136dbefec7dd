"""The dataset that classifiers read: class folders, which are only read, and pictures that may fail."""

from __future__ import annotations

from contextlib import suppress
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import numpy as np
from ultralytics.data.augment import classify_augmentations, classify_transforms
from ultralytics.data.base import BaseDataset
from ultralytics.data.dataset import ClassificationDataset
from ultralytics.utils import LOGGER, NUM_THREADS, TQDM

from models.errors import UserError
from utils.data.description import codes_as_names
from utils.data.disk_cache import cached_file, make_room, read_cached, write_cached
from utils.data.files import class_pictures
from utils.data.pictures import Unreadable, read_header, read_picture
from utils.text import printable

MAX_TRIES = 100  # pictures in a row that may fail to load


class ClassFolders(ClassificationDataset):
    """ultralytics' dataset of class folders, which lists them through links without an end, and writes nothing there.

    An item is {"img": (3, side, side) RGB in [0, 1], "cls": number of the class, "im_file": path of the picture}.

    Args:
        root: the folder of a split, with a folder for each class.
        args: options of ultralytics.
        augment: for training.
        prefix: of lines in the log.
        names: of the classes by number. Folders of others are left out.

    Attributes:
        samples: of each picture the path, the number of its class, and two places that ultralytics keeps.

    Raises:
        UserError: there are no pictures.
    """

    rect = False  # what the trainers read of data sets

    on_disk = False  # pixels are kept there

    def __init__(self, root: str, args: Any, augment: bool, prefix: str, names: dict[int, str]) -> None:
        self.root, self.prefix = root, prefix
        numbers = {name: number for number, name in codes_as_names(names).items()}
        self.samples = [[path, numbers[name], None, None] for path, name in class_pictures(root) if name in numbers]
        self.cache_ram, self.cache_disk = args.cache in (True, "ram"), False  # ultralytics' is beside the pictures
        if self.cache_ram:
            self.cache_images()
        self.on_disk = args.cache == "disk" and self.has_room()
        self.torch_transforms = augmentations(args) if augment else classify_transforms(args.imgsz)

    @property
    def labels(self) -> list[dict[str, np.ndarray]]:
        """The class of each picture, in the form of data sets for detection."""
        return [{"cls": np.array([[sample[1]]])} for sample in self.samples]

    def start_anew(self) -> None:
        """Forget what was loaded; nothing is kept here."""

    def cache_images(self) -> None:
        """Keep all pictures in memory; those that cannot be read are left out."""
        with ThreadPool(NUM_THREADS) as pool:
            read = pool.imap(lambda sample: self.imread_or_warn(str(sample[0])), self.samples)
            images = list(TQDM(read, total=len(self.samples), desc=f"{self.prefix}Caching images"))
        self.samples = [sample for sample, image in zip(self.samples, images, strict=True) if image is not None]
        if not self.samples:
            raise UserError(f"the pictures of {self.root} cannot be read")
        self.img_cache = BaseDataset._ImageCache([image for image in images if image is not None])

    def imread_or_warn(self, file: str) -> np.ndarray | None:
        """Return a picture (H, W, 3) BGR; None with a warning where it cannot be read."""
        try:
            return self.imread(file)
        except Unreadable as error:
            LOGGER.warning(f"{self.prefix}{printable(file)} is left out: {error}")
            return None

    def has_room(self) -> bool:
        """Return whether the disk holds the pixels of all pictures, and say how much they take."""
        sizes = {}
        for sample in self.samples:
            with suppress(Unreadable):
                header = read_header(Path(str(sample[0])))
                sizes[str(sample[0])] = 3 * header.width * header.height
        return make_room([*sizes], [*sizes.values()], 3, self.prefix)

    def imread(self, f: str) -> np.ndarray:
        """Return a picture (H, W, 3) BGR, whose pixels are kept on disk if the options say so."""
        file = cached_file(f, 3) if self.on_disk else None
        pixels = read_cached(file)
        if pixels is None:
            pixels = read_picture(Path(f))
            if file:
                write_cached(file, pixels)
        return pixels

    def __getitem__(self, i: int) -> dict[str, Any]:
        """Return picture `i` and its class; the next one stands in for one that cannot be read."""
        for step in range(min(len(self), MAX_TRIES)):
            j = (i + step) % len(self)
            try:
                return {**super().__getitem__(j), "im_file": self.samples[j][0]}
            except Unreadable as error:
                LOGGER.warning(f"{self.prefix}{printable(self.samples[j][0])} is left out: {error}")
        raise UserError(f"the pictures of {self.root} cannot be read")


def augmentations(args: Any) -> Any:
    """Return ultralytics' augmentations for a training of classifiers, as its options say."""
    return classify_augmentations(
        size=args.imgsz,
        scale=(1.0 - args.scale, 1.0),  # area of the part of a picture that is taken
        hflip=args.fliplr,
        vflip=args.flipud,
        erasing=args.erasing,
        auto_augment=args.auto_augment,
        hsv_h=args.hsv_h,
        hsv_s=args.hsv_s,
        hsv_v=args.hsv_v,
    )
