"""The harder built-in data set: glyphs of 20 classes in scenes with clutter, to compare networks where data is missing.

A class is a glyph and a texture, such as the striped arrow: neither of the two alone tells the class. Objects are 8 to
200 pixels large, turned, stretched, of any two colours, and partly hidden by each other and by what is no object: bars,
blobs, letters, pieces of photographs, other glyphs with the same textures, and the same glyphs without one.
`utils/data/drawn.py` says how a set is drawn and where its pictures and labels are.

Each object is visible to at least 40 %, and to 40 pixels where it has so many: what would hide more is put elsewhere.
So all objects are labelled, and a label is the box around the visible part of one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, TypeVar

import cv2
import numpy as np

from utils.data.drawn import (
    DrawnSet,
    Frame,
    centred,
    crop,
    fill,
    load_photos,
    ring,
    shrink,
    star,
    write_jpeg,
    write_labels,
)

SIZES = 8.0, 200.0  # pixels: longer side of an object's box, cut off and hidden parts included; as many per octave
TELLING = 24.0  # pixels from which things that are no objects may look like them
VISIBLE, VISIBLE_PIXELS = 0.4, 40  # that is left of each object: this part, and this area where it has it
TRIES = 12  # places for a thing, after which it is left out
TURN, STRETCH, SHEAR = 0.5, 0.3, 0.2  # most: radians, logarithm of width by height, sideways by height
PERIOD, LEAST_PERIOD = (0.17, 0.3), 4.0  # of a texture, as a part of the object's size; pixels
NO_OBJECT = -1  # instead of the class, and of the number, of an object


@dataclass(frozen=True)
class Recipe(DrawnSet):
    """Everything the set depends on; when any of it changes, the set is drawn again."""

    name: ClassVar[str] = "scenes"

    version: int = 1
    seed: int = 14
    side: int = 320
    train: int = 2400
    val: int = 600
    test: int = 0
    most_objects: int = 12  # in one picture
    most_clutter: int = 10
    background_every: int = 40  # one picture in so many has no object

    def write_picture(self, root: Path, split: str, number: int) -> None:
        """Draw one picture and write it and its label file."""
        scene = compose(self, split, number)
        pixels, quality = photograph(scene)
        write_jpeg(root / "images" / split / f"{number:04}.jpg", pixels, quality)
        rows = "".join(label_row(kind, box, self.side) for kind, box in scene.boxes())
        write_labels(root / "labels" / split / f"{number:04}.txt", rows)


# Glyphs ----------


def crescent() -> np.ndarray:
    """Return a crescent: two arcs that meet in its tips, one around the origin, one around a point to its right."""
    tip, to_the_right = 0.9, 0.55  # angle of a tip; the outer radius is 1
    across, down = math.cos(tip) - to_the_right, math.sin(tip)
    inner_tip, radius = math.atan2(down, across), math.hypot(across, down)
    outer, inner = np.linspace(tip, 2 * math.pi - tip, 40), np.linspace(2 * math.pi - inner_tip, inner_tip, 40)
    arcs = [(np.cos(outer), np.sin(outer)), (to_the_right + radius * np.cos(inner), radius * np.sin(inner))]
    return np.concatenate([np.stack(arc, 1) for arc in arcs])


def heart() -> np.ndarray:
    """Return a heart."""
    t = np.arange(60) * 2 * math.pi / 60
    across, down = 16 * np.sin(t) ** 3, -13 * np.cos(t) + 5 * np.cos(2 * t) + 2 * np.cos(3 * t) + np.cos(4 * t)
    return np.stack([across, down], 1)


def flower() -> np.ndarray:
    """Return a flower of six petals."""
    points = ring(72)
    return points * (1 + 0.22 * np.cos(6 * np.arange(72) * 2 * math.pi / 72))[:, None]


BEAM, QUARTER = np.array([(-1.6, -1.6), (-1.6, -5.0), (1.6, -5.0)]), np.array([(0.0, 1.0), (-1.0, 0.0)])
GLYPHS = {
    "arrow": centred([(0, -5), (4, -1), (1.7, -1), (1.7, 5), (-1.7, 5), (-1.7, -1), (-4, -1)]),
    "bolt": centred([(1.6, -5), (-3, 0.9), (-0.4, 0.9), (-1.8, 5), (3.4, -1.5), (0.7, -1.5), (2.6, -5)]),
    "crescent": centred(crescent()),
    "cross": centred([*BEAM, *(BEAM @ QUARTER), *(BEAM @ QUARTER @ QUARTER), *(BEAM @ QUARTER @ QUARTER @ QUARTER)]),
    "heart": centred(heart()),
}
OTHERS = {  # glyphs that are no objects
    "disc": centred(ring(48)),
    "flower": centred(flower()),
    "house": centred([(0, -5), (4.4, -1), (4.4, 4.4), (-4.4, 4.4), (-4.4, -1)]),
    "square": centred(ring(4, start=math.pi / 4)),
    "star": centred(star()),
    "triangle": centred(ring(3)),
}


# Textures ----------
Texture = Callable[[np.ndarray, np.ndarray], np.ndarray]


def wave(position: np.ndarray) -> np.ndarray:
    """Return how far inside of the first half of its period a position is, in periods: 0.25 to -0.25."""
    return 0.25 - np.abs(position - np.floor(position) - 0.5)


def striped(across: np.ndarray, down: np.ndarray) -> np.ndarray:  # noqa: ARG001
    """Return how far inside of a stripe each place is; both in periods, negative between stripes."""
    return wave(down)


def checked(across: np.ndarray, down: np.ndarray) -> np.ndarray:
    """Return how far inside of a square of a chessboard each place is."""
    one, other = wave(across), wave(down)
    return np.where((one > 0) == (other > 0), 1, -1) * np.minimum(np.abs(one), np.abs(other))


def dotted(across: np.ndarray, down: np.ndarray) -> np.ndarray:
    """Return how far inside of a dot each place is."""
    x, y = across - np.floor(across) - 0.5, down - np.floor(down) - 0.5
    return 0.34 - np.sqrt(x * x + y * y)


def ringed(across: np.ndarray, down: np.ndarray) -> np.ndarray:
    """Return how far inside of a ring around the object's centre each place is."""
    return wave(np.sqrt(across * across + down * down))


TEXTURES: dict[str, Texture] = {"striped": striped, "checked": checked, "dotted": dotted, "ringed": ringed}
NAMES = tuple(f"{texture} {glyph}" for glyph in GLYPHS for texture in TEXTURES)


# Things that stand in a scene ----------


@dataclass(frozen=True)
class Paint:
    """Two colours in a texture, or one, and light that comes from one side."""

    colours: np.ndarray  # (2, 3) BGR, 0 to 255
    texture: Texture | None
    period: float  # pixels
    angle: float  # of the texture, radians
    phase: tuple[float, float]  # periods
    slope: tuple[float, float]  # of the light, a part of it for each pixel to the right and down

    def on(self, height: int, width: int) -> np.ndarray:
        """Return the colours of a rectangle around the centre of the texture, (height, width, 3) float32."""
        x = np.arange(width, dtype=np.float32) - np.float32(width / 2)
        y = (np.arange(height, dtype=np.float32) - np.float32(height / 2))[:, None]
        first = np.ones((height, width), np.float32)
        if self.texture:
            cos, sin = (np.float32(function(self.angle) / self.period) for function in (math.cos, math.sin))
            across, down = (np.float32(part) for part in self.phase)
            inside = self.texture(cos * x + sin * y + across, cos * y - sin * x + down)
            first = np.clip(inside * np.float32(self.period) + np.float32(0.5), 0, 1)  # smooth over one pixel
        light = 1 + np.float32(self.slope[0]) * x + np.float32(self.slope[1]) * y
        one, other = self.colours.astype(np.float32)
        return (other + first[..., None] * (one - other)) * light[..., None]


@dataclass(frozen=True)
class Thing:
    """What is put into a scene: how much of each pixel it covers, (h, w) uint8, its colours, (h, w, 3), its class."""

    covered: np.ndarray
    colours: np.ndarray
    kind: int = NO_OBJECT
    shadow: int = 0  # pixels

    @property
    def solid(self) -> np.ndarray:
        """The pixels that count as the thing's, (h, w) bool."""
        return self.covered >= 128


@dataclass
class Scene:
    """A picture and the objects in it, while things are put in front of what is there.

    Attributes:
        pixels: (side, side, 3) float32 BGR, 0 to 255.
        rng: that of the picture.
        owner: (side, side) int16: the number of the object that is seen, or `NO_OBJECT`.
        kinds: class of each object.
        whole, seen: pixels of each object, all of them and those that are seen.
    """

    pixels: np.ndarray
    rng: np.random.Generator
    owner: np.ndarray = field(init=False)
    kinds: list[int] = field(default_factory=list)
    whole: list[int] = field(default_factory=list)
    seen: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.owner = np.full(self.pixels.shape[:2], NO_OBJECT, np.int16)

    def place(self, thing: Thing) -> bool:
        """Put a thing where it hides none of the objects too much, at most 15 % of its width or height cut off.

        Returns:
            whether there was such a place.
        """
        (height, width), (rows, columns) = self.owner.shape, thing.covered.shape
        for _ in range(TRIES):
            x, y = (
                round(self.rng.random() * (side - 0.7 * extent) - 0.15 * extent)
                for side, extent in ((width, columns), (height, rows))
            )
            if self.put(thing, (x, y, x + columns, y + rows)):
                return True
        return False

    def put(self, thing: Thing, frame: Frame) -> bool:
        """Put a thing at a place, which may reach beyond the picture, and return whether the objects allow that."""
        height, width = self.owner.shape
        left, top, right, bottom = max(frame[0], 0), max(frame[1], 0), min(frame[2], width), min(frame[3], height)
        inside = np.s_[top - frame[1] : bottom - frame[1], left - frame[0] : right - frame[0]]
        whole_solid = thing.solid
        owner, solid = self.owner[top:bottom, left:right], whole_solid[inside]
        hidden = np.bincount(owner[solid] + 1, minlength=len(self.seen) + 1)[1:]  # the first: pixels of no object
        seen = [pixels - int(lost) for pixels, lost in zip(self.seen, hidden, strict=True)]
        number, kinds, whole = NO_OBJECT, self.kinds, self.whole
        if thing.kind != NO_OBJECT:
            number, kinds = len(kinds), [*kinds, thing.kind]
            seen, whole = [*seen, int(solid.sum())], [*whole, int(whole_solid.sum())]
        if any(left_over < least_seen(pixels) for left_over, pixels in zip(seen, whole, strict=True)):
            return False
        self.kinds, self.seen, self.whole = kinds, seen, whole
        owner[solid] = number
        paint_over(self.pixels[top:bottom, left:right], thing, inside)
        return True

    def boxes(self) -> list[tuple[int, Frame]]:
        """Return class and box of the visible part of each object."""
        found = []
        for number, kind in enumerate(self.kinds):
            seen = self.owner == number
            columns, rows = (np.flatnonzero(seen.any(axis)) for axis in (0, 1))
            found.append((kind, (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)))
        return found


def least_seen(whole: int) -> float:
    """Return how many of the `whole` pixels of an object have to be seen."""
    return max(VISIBLE * whole, min(whole, VISIBLE_PIXELS))


def paint_over(pixels: np.ndarray, thing: Thing, inside: tuple[slice, slice]) -> None:
    """Paint a part of a thing, and its shadow, over the pixels that it covers."""
    if thing.shadow:
        step = thing.shadow
        shifted = np.pad(thing.covered, ((step, 0), (step, 0)))[:-step, :-step][inside]
        blurred = cv2.GaussianBlur(shifted, (2 * step + 1, 2 * step + 1), step / 2)
        pixels *= 1 - np.float32(0.5 / 255) * blurred[..., None]
    alpha = thing.covered[inside][..., None] / np.float32(255)
    pixels += alpha * (thing.colours[inside] - pixels)


# What things look like ----------
T = TypeVar("T")


def any_of(rng: np.random.Generator, choices: Iterable[T]) -> T:
    """Return one of several things, each as likely as the others."""
    listed = list(choices)
    return listed[rng.integers(len(listed))]


def log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """Return a random number between two, each octave as likely as the others."""
    return low * math.exp(rng.uniform(0, 1) * math.log(high / low))


def two_colours(scene: Scene) -> np.ndarray:
    """Return two colours that can be told apart, (2, 3) BGR: half of the time one of them is in the picture as well."""
    rng = scene.rng
    y, x = rng.integers(len(scene.pixels), size=2)
    base = scene.pixels[y, x] if rng.random() < 0.5 else rng.uniform(0, 255, 3)
    towards = -1 if np.mean(base) > rng.uniform(80, 175) else 1
    other = base + towards * rng.uniform(70, 150) + rng.uniform(-35, 35, 3)
    return np.clip([base, other], 0, 255)[:: rng.choice((1, -1))]


def random_paint(scene: Scene, size: float, texture: Texture | None) -> Paint:
    """Return random colours for a thing of `size` pixels, in a texture where one is given."""
    rng = scene.rng
    slope = rng.uniform(-0.3, 0.3, 2) / size
    return Paint(
        colours=two_colours(scene),
        texture=texture,
        period=max(size * rng.uniform(*PERIOD), LEAST_PERIOD),
        angle=rng.uniform(0, math.pi),
        phase=tuple(rng.uniform(-0.5, 0.5, 2)),
        slope=tuple(slope),
    )


def outlined(scene: Scene, points: np.ndarray, texture: Texture | None, kind: int = NO_OBJECT) -> Thing:
    """Return a thing with the outline `points`, (corners, 2) in pixels, in random colours."""
    points = points - points.min(0) + scene.rng.uniform(1, 2, 2)
    width, height = (int(extent) for extent in np.ceil(points.max(0)) + 1)
    paint = random_paint(scene, max(width, height), texture)
    covered = shrink(fill(points, (0, 0, width, height)))
    return Thing(covered, paint.on(height, width), kind, shadow=random_shadow(scene, max(width, height)))


def random_shadow(scene: Scene, size: int) -> int:
    """Return how far the shadow of a thing of `size` pixels reaches, 0 for one without."""
    return int(scene.rng.integers(1, 7)) if size > TELLING and scene.rng.random() < 0.4 else 0


def deformed(rng: np.random.Generator, glyph: np.ndarray, size: float) -> np.ndarray:
    """Return a glyph turned, stretched, sheared and mirrored at random, the longer side of its box being `size`."""
    angle, wider, shear = (rng.uniform(-most, most) for most in (TURN, STRETCH, SHEAR))
    cos, sin = math.cos(angle), math.sin(angle)
    points = glyph * (rng.choice((1, -1)) * math.exp(wider / 2), math.exp(-wider / 2))
    points = points @ np.array([[1, 0], [shear, 1]]) @ np.array([[cos, sin], [-sin, cos]])
    return points * size / np.ptp(points, axis=0).max()


def random_object(scene: Scene) -> Thing:
    """Return an object of a random class."""
    kind = int(scene.rng.integers(len(NAMES)))
    glyph, texture = divmod(kind, len(TEXTURES))
    points = deformed(scene.rng, list(GLYPHS.values())[glyph], log_uniform(scene.rng, *SIZES))
    return outlined(scene, points, list(TEXTURES.values())[texture], kind)


# Clutter ----------


def other_glyph(scene: Scene) -> Thing:
    """Return a glyph that is no object, in a texture of the objects."""
    points = deformed(scene.rng, any_of(scene.rng, OTHERS.values()), log_uniform(scene.rng, TELLING, SIZES[1]))
    return outlined(scene, points, any_of(scene.rng, TEXTURES.values()))


def plain_glyph(scene: Scene) -> Thing:
    """Return a glyph of the objects without a texture."""
    glyph = any_of(scene.rng, GLYPHS.values())
    return outlined(scene, deformed(scene.rng, glyph, log_uniform(scene.rng, TELLING, SIZES[1])), None)


def bar(scene: Scene) -> Thing:
    """Return a long thin bar, striped or of one colour."""
    rng = scene.rng
    length, width, angle = rng.uniform(40, 260), rng.uniform(3, 14), rng.uniform(0, math.pi)
    along, beside = np.array([math.cos(angle), math.sin(angle)]), np.array([-math.sin(angle), math.cos(angle)])
    points = np.array([a * length * along + b * width * beside for a, b in ((0, 0), (1, 0), (1, 1), (0, 1))])
    return outlined(scene, points, striped if rng.random() < 0.3 else None)


def blob_outline(rng: np.random.Generator) -> np.ndarray:
    """Return a round outline with dents, (48, 2) in pixels."""
    turns = np.arange(48) * 2 * math.pi / 48
    radius = np.ones(48)
    for waves in (1, 2, 3, 4, 5):
        radius += rng.uniform(0, 0.35 / waves) * np.cos(waves * turns + rng.uniform(0, 2 * math.pi))
    return ring(48) * radius[:, None] * log_uniform(rng, 8, 70)


def blob(scene: Scene) -> Thing:
    """Return a blob, in a texture of the objects or in one colour."""
    texture = any_of(scene.rng, TEXTURES.values()) if scene.rng.random() < 0.3 else None
    return outlined(scene, blob_outline(scene.rng), texture)


def piece_of_photo(scene: Scene) -> Thing:
    """Return a blob that shows a part of a photograph."""
    plain = outlined(scene, blob_outline(scene.rng), None)
    height, width = plain.covered.shape
    piece = recoloured(scene.rng, crop(load_photos(), scene.rng, max(height, width), least=60))
    return Thing(plain.covered, piece[:height, :width], shadow=plain.shadow)


def letter(scene: Scene) -> Thing:
    """Return one or two letters or digits of OpenCV's own fonts."""
    rng = scene.rng
    text = "".join(chr(code) for code in rng.integers(ord("0"), ord("z") + 1, rng.integers(1, 3)))
    font, scale, thick = int(rng.integers(8)), rng.uniform(0.5, 4), int(rng.integers(1, 6))
    (width, height), base = cv2.getTextSize(text, font, scale, thick)
    covered = np.zeros((height + base + 2 * thick, width + 2 * thick), np.uint8)
    cv2.putText(covered, text, (thick, height + thick), font, scale, 255, thick, cv2.LINE_AA)
    paint = random_paint(scene, max(covered.shape), None)
    return Thing(covered, paint.on(*covered.shape))


CLUTTER = bar, bar, blob, piece_of_photo, letter, other_glyph, other_glyph, plain_glyph


# Backgrounds ----------


def recoloured(rng: np.random.Generator, pixels: np.ndarray) -> np.ndarray:
    """Return a picture as another light or camera would show it, (H, W, 3) float32, sometimes with swapped channels."""
    order = rng.permutation(3) if rng.random() < 0.3 else np.arange(3)
    gains, contrast = rng.uniform(0.75, 1.25, 3).astype(np.float32), np.float32(rng.uniform(0.55, 1.2))
    return np.clip((pixels[..., order] * gains - 128) * contrast + np.float32(rng.uniform(95, 160)), 0, 255)


def photo(rng: np.random.Generator, side: int) -> np.ndarray:
    """Return a part of a photograph, seldom upside down or on its side."""
    pixels = recoloured(rng, crop(load_photos(), rng, side, least=side // 3))
    return np.ascontiguousarray(np.rot90(pixels, rng.choice((0, 0, 0, 0, 1, 2, 3))))


def two_photos(rng: np.random.Generator, side: int) -> np.ndarray:
    """Return two photographs, one beside the other at a slanted edge."""
    one, other = photo(rng, side), photo(rng, side)
    slant, x = rng.uniform(-1, 1), np.arange(side, dtype=np.float32)
    beyond = np.clip(x + np.float32(slant) * (x[:, None] - side / 2) - np.float32(rng.uniform(0.25, 0.75) * side), 0, 1)
    return one + beyond[..., None] * (other - one)


def clouds(rng: np.random.Generator, side: int) -> np.ndarray:
    """Return coloured noise of several scales."""
    pixels = np.zeros((side, side, 3), np.float32) + rng.uniform(60, 190, 3).astype(np.float32)
    for cells in (3, 9, 27, 81):
        noise = rng.uniform(-1, 1, (cells, cells, 1 + 2 * int(rng.integers(2)))).astype(np.float32)
        grown = cv2.resize(noise, (side, side), interpolation=cv2.INTER_CUBIC).reshape(side, side, -1)
        pixels += np.float32(rng.uniform(5, 45)) * grown
    return np.clip(pixels, 0, 255)


def textured(rng: np.random.Generator, side: int) -> np.ndarray:
    """Return noise with a texture of the objects all over it."""
    pixels = clouds(rng, side)
    period, angle, strength = log_uniform(rng, 8, 70), rng.uniform(0, math.pi), rng.uniform(15, 60)
    tone = np.array([[1.0] * 3, [-1.0] * 3])
    texture = any_of(rng, TEXTURES.values())
    plane = Paint(tone, texture, period, angle, tuple(rng.uniform(-2, 2, 2)), (0, 0)).on(side, side)
    return np.clip(pixels + np.float32(strength) * plane, 0, 255)


BACKGROUNDS = *(photo,) * 6, two_photos, clouds, textured


# Pictures ----------


def compose(recipe: Recipe, split: str, number: int) -> Scene:
    """Return picture `number` of `split` with all that stands in it, objects and clutter in random order."""
    rng = recipe.generator(split, number)
    scene = Scene(any_of(rng, BACKGROUNDS)(rng, recipe.side), rng)
    empty = number % recipe.background_every == recipe.background_every - 1
    objects = 0 if empty else int(rng.integers(1, recipe.most_objects + 1))
    clutter = [any_of(rng, CLUTTER) for _ in range(rng.integers(recipe.most_clutter + 1))]
    makers = [*(random_object,) * objects, *clutter]
    for i in rng.permutation(len(makers)):
        scene.place(makers[i](scene))
    return scene


def photograph(scene: Scene) -> tuple[np.ndarray, int]:
    """Return the picture of a scene in uneven light, a little blurred, with noise, and the quality of its JPEG.

    Returns:
        (side, side, 3) uint8 BGR; 50 to 95.
    """
    rng, side = scene.rng, len(scene.pixels)
    light = rng.uniform(0.75, 1.2, (3, 3)).astype(np.float32)
    lit = scene.pixels * cv2.resize(light, (side, side), interpolation=cv2.INTER_CUBIC)[..., None]
    pixels: np.ndarray = np.clip(np.rint(lit), 0, 255).astype(np.uint8)
    if rng.random() < 0.6:
        pixels = cv2.GaussianBlur(pixels, (5, 5), rng.uniform(0.3, 0.8))
    noise = rng.integers(0, 256, (2, *pixels.shape), np.uint8).astype(np.int16)  # two equal ones make a triangle
    strength = np.float32(rng.uniform(0, 10) / 104)  # 104 is the deviation of the difference
    noisy = np.clip(np.rint(pixels + strength * (noise[0] - noise[1])), 0, 255).astype(np.uint8)
    return noisy, int(rng.integers(50, 96))


def label_row(kind: int, box: Frame, side: int) -> str:
    """Return the YOLO row of a box in pixels: class, centre, width and height as parts of `side`."""
    left, top, right, bottom = box
    values = (left + right) / 2, (top + bottom) / 2, right - left, bottom - top
    return f"{kind} {' '.join(f'{value / side:.6f}' for value in values)}\n"
