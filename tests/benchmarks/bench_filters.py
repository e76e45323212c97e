"""What a filter costs: the first on a field, which reads the payloads, and every later one; and what ranking costs.

Run: OMP_NUM_THREADS=1 python tests/benchmarks/bench_filters.py
"""

import json
import random
import time
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import numpy.typing as npt

from indexer import filters, ranking
from indexer.columns import Columns
from indexer.rows import Embeddings

COUNT, DIM, TOP_K = 1_000_000, 128, 10
LATER = (
    "species = wren",
    "species != wren",
    "NOT species = wren",
    "species IN (wren, robin, dunnock)",
    "year >= 2010",
    "price < 0.1",
    "tags:indoor",
    "place.region = north",
    "sku = s77",
    'sku = "s77*"',
    'sku > "s77"',
    "price > 0.5 AND year < 2010 AND species IN (wren, robin)",
)

Figures = dict[str, str | int | float]


def main() -> None:
    """Print each table as JSON lines."""
    for measured in (first_filters, later_filters, choosing):
        for figures in measured():
            print(json.dumps({"table": measured.__name__, **figures}), flush=True)


def first_filters() -> Iterator[Figures]:
    """CPU seconds until a column of a million rows is made, and milliseconds until it has one row more."""
    payloads = made(COUNT + 1)
    for field in ("species", "price", "tags", "sku"):
        columns, expression = over(payloads), filters.parse(f"{field}:*")
        making_s = cpu_s(partial(columns.mask, expression, COUNT))
        adding_s = cpu_s(partial(columns.mask, expression, COUNT + 1))
        yield {"field": field, "count": COUNT, "making_s": round(making_s, 2), "adding_ms": round(adding_s * 1e3, 2)}


def later_filters() -> Iterator[Figures]:
    """CPU milliseconds of a filter on columns that are made."""
    columns = over(made(COUNT))
    for text in LATER:
        expression = filters.parse(text)
        found = columns.mask(expression, COUNT).mean()
        took_s = min(cpu_s(partial(columns.mask, expression, COUNT)) for _ in range(7))
        parsing_s = min(cpu_s(partial(filters.parse, text)) for _ in range(100))
        yield {
            "filter": text,
            "share": round(float(found), 4),
            "ms": round(took_s * 1e3, 2),
            "parsing_us": round(parsing_s * 1e6),
        }


def choosing() -> Iterator[Figures]:
    """CPU milliseconds of choosing hits among candidates that are all distinct, and all near duplicates."""
    rng = np.random.default_rng(0)
    for name, spread in (("distinct", 1.0), ("near duplicates", 0.01)):
        rows = unit(rng.standard_normal(DIM) + spread * rng.standard_normal((ranking.MAX_CANDIDATES, DIM)))
        rows = rows[np.argsort(-(rows @ rows[0]))]
        similarities = rows @ rows[0]
        for top_k in (TOP_K, 1000):
            pool = ranking.POOL * top_k
            choices: dict[str, Callable[[], object]] = {
                "distinct": partial(ranking.distinct, np.zeros(len(rows), np.int32), rows, 0.95, top_k),
                "diverse": partial(ranking.diverse, similarities[:pool], rows[:pool], 0.5, top_k),
            }
            for step, choose in choices.items():
                took_s = min(cpu_s(choose) for _ in range(3))
                yield {"step": step, "candidates": name, "top_k": top_k, "ms": round(took_s * 1e3, 2)}


def made(count: int) -> list[str]:
    rng = random.Random(0)
    species = ["wren", "robin", "dunnock", *(f"species-{number}" for number in range(200))]
    return [
        json.dumps(
            {
                "species": rng.choice(species),
                "year": rng.randrange(1990, 2027),
                "price": rng.random(),
                "tags": rng.sample(["indoor", "blurred", "night", "flight"], 2),
                "place": {"region": rng.choice(["north", "south"])},
                "sku": f"s{number}",
            }
        )
        for number in range(count)
    ]


def over(payloads: list[str]) -> Columns:
    return Columns(
        lambda first, end: zip(range(first, end), payloads[first:end], strict=True),
        lambda first, end: ((row, f"dir/{row}.jpg") for row in range(first, end)),
    )


def unit(rows: npt.NDArray[np.float64]) -> Embeddings:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


def cpu_s(call: Callable[[], object]) -> float:
    begun = time.process_time()
    call()
    return time.process_time() - begun


if __name__ == "__main__":
    main()
