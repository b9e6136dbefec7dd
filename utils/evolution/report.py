"""What a search found: a table, a picture, and the best recipe."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ultralytics.utils import LOGGER

from utils.evolution.search import Search
from utils.text import quote
from utils.writing import replacing, write_text

TABLE, PICTURE, RECIPE = "evolve.csv", "evolve.png", "hyp_evolved.yaml"
ACCURACIES = {"detect": "mAP50-95", "segment": "mean of box and mask mAP50-95", "classify": "top-1"}
COLUMNS = 5  # of the picture


def best_of(results: Sequence[dict[str, Any]]) -> int:
    """Return the number of the generation with the highest fitness, the first of equals."""
    return int(np.argmax([result["fitness"] for result in results]))


def save_report(search: Search) -> None:
    """Write the table, the picture and the best recipe into the folder of a search."""
    results = search.results()
    best = best_of(results)
    write_text(search.folder / TABLE, as_table(results))
    comment = f"{ACCURACIES[search.task]} {results[best]['fitness']:.5f} in generation {best} of {len(results)}"
    search.write_recipe(search.folder / RECIPE, results[best]["values"], comment)
    draw(search, results, search.folder / PICTURE)


def as_table(results: Sequence[dict[str, Any]]) -> str:
    """Return the results as CSV, a line for each generation."""
    metrics = list(dict.fromkeys(name for result in results for name in result["metrics"]))
    rows = [
        {
            "generation": number,
            "fitness": result["fitness"],
            **{name: result["metrics"].get(name, "") for name in metrics},
            **result["values"],
            "problem": result.get("problem", ""),
        }
        for number, result in enumerate(results)
    ]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def draw(search: Search, results: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw the fitness of the generations, and against each hyper-parameter; the best one is marked."""
    from matplotlib.figure import Figure  # noqa: PLC0415 (slow)

    fitness = np.array([result["fitness"] for result in results])
    best = best_of(results)
    rows = -(-(len(search.bounds) + 1) // COLUMNS)
    figure = Figure(figsize=(2.4 * COLUMNS, 1.9 * rows))
    for place, name in enumerate(("", *search.bounds)):
        axes = figure.add_subplot(rows, COLUMNS, place + 1)
        if name:
            values = np.array([result["values"][name] for result in results])
            axes.scatter(values, fitness, s=12, c=np.arange(len(values)), cmap="viridis", alpha=0.8)
            axes.plot(values[best], fitness[best], "+", markersize=14, color="#dc2626")
        else:
            axes.plot(fitness, ".", color="#9ca3af")
            axes.plot(np.maximum.accumulate(fitness), color="#2563eb")
        title = f"{name} = {values[best]:.3g}" if name else f"{ACCURACIES[search.task]} by generation"
        axes.set_title(title, fontsize=8)
        axes.locator_params(nbins=3)
        axes.tick_params(labelsize=6)
    figure.subplots_adjust(0.03, 0.04, 0.99, 0.97, wspace=0.25, hspace=0.35)
    with replacing(path) as file:
        figure.savefig(file, format="png", dpi=90)


def log_end(search: Search) -> None:
    """Say what a search found, and how to use it."""
    results = search.results()
    best, name = best_of(results), ACCURACIES[search.task]
    LOGGER.info(
        f"\n{len(results)} generations: the best {name} is {results[best]['fitness']:.4f} of generation {best}, the "
        f"recipe's own {results[0]['fitness']:.4f}"
        f"\nResults saved to {search.folder}: {TABLE}, {PICTURE} and {RECIPE}"
        f"\nUse it with:   --hyp {quote(search.folder / RECIPE)}"
        f"\nMore of them:  python train.py --resume {quote(search.folder)} --evolve {2 * len(results)}"
    )
