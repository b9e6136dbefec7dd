"""The dataset that classifiers read: ultralytics' class folders, which are only read, and pictures that may fail."""

from __future__ import annotations

from contextlib import suppress
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np
from ultralytics.data.dataset import ClassificationDataset
from ultralytics.utils import LOGGER

from models.errors import UserError
from utils.data.disk_cache import cached_file, make_room, read_cached, write_cached
from utils.data.pictures import Unreadable, read_header, read_picture
from utils.text import printable

MAX_TRIES = 100  # pictures in a row that may fail to load


class ClassFolders(ClassificationDataset):
    """ultralytics' dataset of class folders, without a scan that would write beside them.

    An item is {"img": (3, side, side) RGB in [0, 1], "cls": number of the class, "im_file": path of the picture}.
    """

    rect = False  # what the trainers read of data sets

    on_disk = False  # pixels are kept there

    def __init__(self, root: str, args: Any, augment: bool = False, prefix: str = "", names: Any = None) -> None:
        own = copy(args)
        own.cache = args.cache if args.cache != "disk" else False  # ultralytics would write beside the pictures
        super().__init__(root, own, augment, prefix, names)
        self.on_disk = args.cache == "disk" and self.has_room()

    @property
    def labels(self) -> list[dict[str, np.ndarray]]:
        """The class of each picture, in the form of data sets for detection."""
        return [{"cls": np.array([[sample[1]]])} for sample in self.samples]

    def verify_images(self) -> list[Any]:
        """Return all pictures: one that cannot be read is noticed when it is loaded."""
        return self.samples

    def start_anew(self) -> None:
        """Forget what was loaded; nothing is kept here."""

    def has_room(self) -> bool:
        """Return whether the disk holds the pixels of all pictures, and say how much they take."""
        sizes = {}
        for sample in self.samples:
            with suppress(Unreadable):
                header = read_header(Path(sample[0]))
                sizes[sample[0]] = 3 * header.width * header.height
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
