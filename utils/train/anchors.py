"""AutoAnchor: do a head's anchors fit the labels of a data set, and which would fit better (YOLOv5).

An anchor fits a label when neither side is more than a few times the other's, as the loss demands; a label that no
anchor fits is never learned.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from ultralytics.data.dataset import YOLODataset
from ultralytics.utils import LOGGER, TQDM, colorstr

GOOD_RECALL = 0.98  # of the labels have an anchor that fits: good enough
MIN_ANCHOR_SIDE = 2.0  # pixels; of an anchor, and of the longer side of the labels that anchors are made for
SMALL_SIDE = 3.0  # pixels; labels with a shorter side are hardly ever found
MAX_LABELS = 20_000  # that anchors are made from; more of them make much the same anchors more slowly
JITTER = 0.1  # pictures are sized at random by +/- this fraction
KMEANS_RUNS, KMEANS_STEPS = 10, 30
MUTATED, MUTATION = 0.9, 0.1  # share of the sides that change in a generation, and by how much
PREFIX = colorstr("AutoAnchor: ")


def fit_anchors(
    anchors: Tensor,
    strides: Tensor,
    dataset: YOLODataset,
    imgsz: int,
    thr: float = 4.0,
    generations: int = 1000,
    seed: int = 0,
) -> Tensor | None:
    """Return anchors that fit a data set better than those of a head, or None when these should stay; log which.

    Args:
        anchors: (levels, anchors per level, 2) width and height in pixels.
        strides: (levels,) of the head's maps, in any order; the smallest anchors go to the smallest.
        dataset: what is trained on; sizes of pictures and boxes are read from its `labels`.
        imgsz: pixels of a picture's longer side in training.
        thr: how many times wider, narrower, higher or lower than a label an anchor may be; `anchor_t` of the loss.
        generations: steps of the evolution that follows k-means.
        seed: of everything random.
    """
    sizes = label_sizes(dataset, imgsz, seed)
    if not len(sizes):
        LOGGER.warning(f"{PREFIX}there are no labels to fit anchors to, they stay as they are")
        return None
    recall, count = anchor_fit(sizes, anchors.reshape(-1, 2), thr)
    found = f"{PREFIX}{count:.2f} anchors/target, {recall:.3f} Best Possible Recall (BPR). "
    if recall >= GOOD_RECALL:
        LOGGER.info(f"{found}Current anchors are a good fit to dataset")
        return None
    LOGGER.info(f"{found}Anchors are a poor fit to dataset, attempting to improve...")
    better = kmeans_anchors(sizes, anchors[..., 0].numel(), imgsz, thr, generations, seed)
    new_recall, new_count = anchor_fit(sizes, better, thr)
    if new_recall <= recall:
        LOGGER.info(f"{PREFIX}the new ones have a BPR of {new_recall:.3f}, so the former anchors stay")
        return None
    levels = torch.empty_like(anchors)
    levels[strides.argsort()] = better.to(anchors).view_as(anchors)
    LOGGER.info(
        f"{PREFIX}{new_count:.2f} anchors/target, {new_recall:.3f} Best Possible Recall (BPR) with new anchors; "
        f"for the model's YAML: {levels.flatten(1).round().int().tolist()}"
    )
    return levels


def label_sizes(dataset: YOLODataset, imgsz: int, seed: int = 0) -> Tensor:
    """Return width and height (n, 2) in pixels of all labels, in pictures sized for training with a random jitter."""
    labels = [label for label in dataset.labels if len(label["bboxes"])]
    if not labels:
        return torch.zeros(0, 2)
    sides = np.array([label["shape"] for label in labels], dtype=np.float64)[:, ::-1]  # width, height
    jitter = np.random.default_rng(seed).uniform(1 - JITTER, 1 + JITTER, (len(labels), 1))
    sides = imgsz * sides / sides.max(axis=1, keepdims=True) * jitter
    boxes = [label["bboxes"][:, 2:4] * side for label, side in zip(labels, sides, strict=True)]
    return torch.from_numpy(np.concatenate(boxes)).float()


def anchor_fit(wh: Tensor, anchors: Tensor, thr: float) -> tuple[float, float]:
    """Return how well anchors fit labels.

    Args:
        wh: (n, 2) width and height of at least one label, in pixels.
        anchors: (k, 2) in pixels.
        thr: how many times longer or shorter than a label's sides an anchor's may be.

    Returns:
        The share of labels that an anchor fits (best possible recall), and the number of anchors that fit one label,
        on average.
    """
    fitting = torch.cat([(likeness(part, anchors) > 1 / thr).sum(1) for part in wh.split(MAX_LABELS)])
    return (fitting > 0).double().mean().item(), fitting.double().mean().item()


def likeness(wh: Tensor, anchors: Tensor) -> Tensor:
    """Return (n, k) how alike sizes (n, 2) and anchors (k, 2) are: 1 is equal, 0.5 has a side of half the length."""
    return torch.cdist(wh.log(), anchors.to(wh).log(), p=math.inf).neg().exp()


def kmeans_anchors(wh: Tensor, n: int, imgsz: int, thr: float = 4.0, generations: int = 1000, seed: int = 0) -> Tensor:
    """Return `n` anchors (n, 2) in pixels for labels of sizes `wh` (m, 2), sorted by area.

    K-means finds them, then they mutate, and what fits better survives. Labels of too few different sizes make no
    anchors: then these are squares from small to large.

    Args:
        wh: width and height in pixels of a picture of `imgsz`.
        n: number of anchors.
        imgsz: pixels of a picture's longer side.
        thr: as in `anchor_fit`.
        generations: how many mutations are tried.
        seed: the same gives the same anchors.
    """
    random = torch.Generator().manual_seed(seed)
    wh = wh.detach().float().cpu()
    small = int((wh < SMALL_SIDE).any(1).sum())
    if small:
        LOGGER.warning(
            f"{PREFIX}{small} of {len(wh)} labels are less than {SMALL_SIDE:g} pixels wide or high at {imgsz} pixels"
        )
    wh = wh[(wh >= MIN_ANCHOR_SIDE).any(1)]
    kinds = len(wh.round().unique(dim=0))
    if kinds < n:
        LOGGER.warning(
            f"{PREFIX}{n} anchors cannot be made from {len(wh)} labels of {kinds} different sizes; squares from small "
            f"to large stand in for them"
        )
        return spread_anchors(n, imgsz)
    if len(wh) > MAX_LABELS:
        wh = wh[torch.randperm(len(wh), generator=random)[:MAX_LABELS]]
    anchors = evolve(kmeans(wh, n, random).clamp(min=MIN_ANCHOR_SIDE), wh, thr, generations, random)
    return anchors[anchors.prod(1).argsort()]


def spread_anchors(n: int, imgsz: int) -> Tensor:
    """Return `n` square anchors (n, 2) whose sides grow evenly, by factors, from 1/64 to 1/2 of the picture."""
    sides = imgsz / 64 * 32 ** torch.linspace(0, 1, n)
    return sides.clamp(min=MIN_ANCHOR_SIDE)[:, None].repeat(1, 2)


def kmeans(wh: Tensor, n: int, random: torch.Generator) -> Tensor:
    """Return the `n` centres (n, 2) of clusters of sizes (m, 2); width and height weigh by their standard deviation.

    Of several runs from different first centres, the one whose clusters are tightest counts.
    """
    middle, scale = wh.mean(0), wh.std(0, correction=0).clamp(min=1e-3)
    points = (wh - middle) / scale
    runs = []
    for _ in range(KMEANS_RUNS):
        centres = first_centres(points, n, random)
        for _ in range(KMEANS_STEPS):
            nearest = torch.cdist(points, centres).argmin(1)
            count = nearest.bincount(minlength=n)[:, None]
            total = torch.zeros_like(centres).index_add_(0, nearest, points)
            centres = torch.where(count > 0, total / count, centres)
        runs.append((torch.cdist(points, centres).amin(1).square().mean().item(), centres))
    return min(runs, key=lambda run: run[0])[1] * scale + middle


def first_centres(points: Tensor, n: int, random: torch.Generator) -> Tensor:
    """Return `n` of the points (m, 2), far from one another, as k-means++ does (Arthur and Vassilvitskii)."""
    centres = points[torch.randint(len(points), (1,), generator=random)]
    for _ in range(n - 1):
        far = torch.cdist(points, centres).amin(1).double().square().cumsum(0)
        chosen = torch.searchsorted(far, torch.rand(1, generator=random).double() * far[-1], right=True)
        centres = torch.cat([centres, points[chosen.clamp(max=len(points) - 1)]])
    return centres


def evolve(anchors: Tensor, wh: Tensor, thr: float, generations: int, random: torch.Generator) -> Tensor:
    """Return the fittest of `generations` mutations of anchors (n, 2), each of the fittest before it."""
    best = fitness(anchors, wh, thr)
    bar = TQDM(range(generations), desc=f"{PREFIX}evolving anchors")
    for _ in bar:
        strength = torch.rand(1, generator=random) * MUTATION
        changed = torch.rand(anchors.shape, generator=random) < MUTATED
        factors = (1 + changed * strength * torch.randn(anchors.shape, generator=random)).clamp(0.3, 3.0)
        mutant = (anchors * factors).clamp(min=MIN_ANCHOR_SIDE)
        fit = fitness(mutant, wh, thr)
        if fit > best:
            anchors, best = mutant, fit
            bar.set_description(f"{PREFIX}evolving anchors, fitness {best:.4f}")
    return anchors


def fitness(anchors: Tensor, wh: Tensor, thr: float) -> float:
    """Return the mean over labels of the likeness of their best anchor, which counts as 0 when even it does not fit."""
    best = likeness(wh, anchors).amax(1)
    return (best * (best > 1 / thr)).mean().item()
