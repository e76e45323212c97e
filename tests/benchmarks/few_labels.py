"""What a few labels are worth: each method on the same labels, by their number and by who picked them.

Run: python tests/benchmarks/few_labels.py IMAGES --labels CSV --store STORE --model MODEL --out DIR
     [--seeds 0 1 2] [--per-class 1 2 5 10] [--budgets 100 400] [--methods NAME...] [--set section.key=value ...]
     [--wrong SHARE] [--keep-doubted]

CSV has the splits train and test. MODEL was learned on the images of the split train without labels; `stml` in the
table is MODEL as it is, and all methods start from it but `labels_alone`: that is `supervised` from the pretrained
weights, which no unlabelled image has taught. For each seed labels are drawn from the split train: so many
of each class, or so many in all, at random or as `kinsight suggest` picks them. The other images of the split train
are learned from without labels, and are judged on as `rest`; `unseen` are those of the split test. More of each class
than there are is all of them, and then there is no rest. --wrong makes so many of the labels wrong, of any class but
the right one; --keep-doubted learns from those too that are likely wrong. Each cell is a file DIR/results/NAME.json
and is skipped when the same command comes again; one that was killed goes on from its checkpoint. One DIR is for one
collection, MODEL and --set.
"""

import argparse
import csv
import json
import random
import shlex
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from clients.cli.output import Progress, progress
from indexer.manifest import write_atomically
from indexer.sources import open_collection
from indexer.store import Store
from tests.benchmarks.ladder import commit
from trainer import recipe as recipes
from trainer.labels import read_labels
from trainer.recipe import Recipe
from trainer.run import train
from trainer.run_directory import FINISHED, RECIPE
from trainer.start import recipe_from
from trainer.suggest import suggest

_ALONE = "labels_alone"
METHODS = (_ALONE, "supervised", "stml_semi", "cmsf_semi")
METRICS = {"R@1": "recall_at_1", "MAP@R": "map_at_r"}
BEFORE = {"frozen": "frozen", "start": "stml"}  # judged alike by every cell that started from MODEL
PLACES = {"unseen classes": "unseen", "rest": "rest"}
Judged = Mapping[str, Mapping[str, Mapping[str, float]]]
Pools = Mapping[str, list[tuple[Path, str]]]


@dataclass(frozen=True)
class Draw:
    """Which labels a cell learns from."""

    kind: str  # per-class, random or usl
    count: int
    seed: int
    wrong: float = 0.0  # so many of the labels

    @property
    def labels(self) -> str:
        """For a person, whatever the seed."""
        labels = f"{self.count} a class" if self.kind == "per-class" else f"{self.count} by {self.kind}"
        return labels + (f", {self.wrong:.0%} wrong" if self.wrong else "")

    @property
    def name(self) -> str:
        """For a file."""
        return f"{self.kind}-{self.count}-seed{self.seed}" + (f"-wrong{self.wrong:g}" if self.wrong else "")


def main(argv: Sequence[str]) -> None:
    """Make the cells that are not there yet, and print the table of all that were asked for."""
    arguments = parse(argv)
    draws = [
        Draw(kind, count, seed, arguments.wrong)
        for seed in arguments.seeds
        for kind, counts in (
            ("per-class", arguments.per_class),
            ("random", arguments.budgets),
            ("usl", arguments.budgets),
        )
        for count in counts
    ]
    (arguments.out / "results").mkdir(parents=True, exist_ok=True)
    bench = Bench(arguments)
    results: dict[tuple[str, str], list[Judged]] = defaultdict(list)
    with progress() as report:
        for draw in draws:
            for method in arguments.methods:
                results[draw.labels, method].append(bench.cell(draw, method, report))
    print(table(results))
    print(f"\n    python tests/benchmarks/few_labels.py {shlex.join(argv)}\n\ncommit: {commit()}")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path, help="a folder, or a table with a column path")
    parser.add_argument("--labels", type=Path, required=True, help="a table path,class_id,split")
    parser.add_argument("--store", type=Path, required=True, help="holds MODEL, and gets what is learned")
    parser.add_argument("--model", required=True, help="the model that all methods start from")
    parser.add_argument("--out", type=Path, required=True, help="where draws and results are kept")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="N")
    parser.add_argument("--per-class", type=int, nargs="*", default=[1, 2, 5, 10], metavar="N")
    parser.add_argument("--budgets", type=int, nargs="*", default=[100, 400], metavar="N")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=[*METHODS])
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="SECTION.KEY=VALUE")
    parser.add_argument("--wrong", type=float, default=0.0, metavar="SHARE", help="of the labels, 0 to 1")
    parser.add_argument("--keep-doubted", action="store_true", help="learn from labels that are likely wrong too")
    return parser.parse_args(argv)


class Bench:
    """The cells of one collection and one model."""

    def __init__(self, arguments: argparse.Namespace):
        self.out: Path = arguments.out.resolve()
        self.settings: list[str] = arguments.set
        self.keep_doubted: bool = arguments.keep_doubted
        self.store = Store(arguments.store)
        self.model: Path = self.store.model(arguments.model)
        self.pools = pools(arguments.images, arguments.labels)
        self.images = self.out / "train.csv"  # what may be labelled
        write_table(self.images, [(path, "", "") for path, _ in self.pools["train"]])

    def cell(self, draw: Draw, method: str, report: Progress) -> Judged:
        """The metrics of one method on one draw; learned where DIR has none."""
        name = f"{draw.name}-{method}" + ("-doubted" if self.keep_doubted else "")
        file = self.out / "results" / f"{name}.json"
        if not file.exists():
            print(name, file=sys.stderr)
            found = self._learned(draw, method, f"few-{name}", report)
            write_atomically(file, json.dumps({"commit": commit(), "judged": found}).encode())
        judged: Judged = json.loads(file.read_text())["judged"]
        return judged

    def _learned(self, draw: Draw, method: str, name: str, report: Progress) -> Judged:
        base = self._recipe(method)
        begun = (self.store.runs / name / RECIPE).exists()
        (self.store.runs / name / FINISHED).unlink(missing_ok=True)  # its results are gone: it is judged once more
        table = self._table(draw, report)
        done = train(
            table,
            models=self.store.models,
            runs=self.store.runs,
            recipe=recipes.override(base, *self.settings, f"run.seed={draw.seed}"),
            labels=table,
            teach=True,
            keep_doubted=self.keep_doubted,
            name=None if begun else name,
            resume=name if begun else None,
            progress=report,
        )
        return done.tables()

    def _recipe(self, method: str) -> Recipe:
        from_model = recipe_from(self.model)
        if method != _ALONE:
            return recipes.taught(from_model, method)
        return recipes.override(recipes.taught(from_model, "supervised"), "encoder.from_model=none")

    def _table(self, draw: Draw, report: Progress) -> Path:
        """The collection of a draw, which is its labels too."""
        file = self.out / f"{draw.name}.csv"
        if not file.exists():
            picked = self._picked(draw, report)
            told = self._told(draw, picked)
            rows = [
                (path, told.get(path, name), "train" if path in picked else "rest")
                for path, name in self.pools["train"]
            ]
            write_table(file, [*rows, *((path, name, "test") for path, name in self.pools["test"])])
        return file

    def _told(self, draw: Draw, picked: set[Path]) -> dict[Path, str]:
        """What the wrong labels say."""
        chance = random.Random(draw.seed)
        names = sorted({name for _, name in self.pools["train"]})
        known = [(path, name) for path, name in self.pools["train"] if path in picked]
        wrong = chance.sample(known, round(draw.wrong * len(known)))
        return {path: chance.choice([other for other in names if other != name]) for path, name in wrong}

    def _picked(self, draw: Draw, report: Progress) -> set[Path]:
        if draw.kind == "usl":
            found = suggest(self.model, self.images, draw.count, seed=draw.seed, progress=report)
            return {one.source.path.resolve() for one in found.suggested}
        chance = random.Random(draw.seed)  # a draw that comes again
        if draw.kind == "random":
            return set(chance.sample([path for path, _ in self.pools["train"]], draw.count))
        return set(some_of_each(self.pools["train"], draw.count, chance))


def some_of_each(pool: Sequence[tuple[Path, str]], count: int, chance: random.Random) -> Iterator[Path]:
    """So many images of each class; of smaller classes all. With more they are those with fewer, and others."""
    members = defaultdict(list)
    for path, name in pool:
        members[name].append(path)
    for name in sorted(members):
        order = chance.sample(members[name], len(members[name]))
        yield from order[:count]


def pools(images: Path, labels: Path) -> Pools:
    """The images of the splits train and test with their classes."""
    collection = open_collection(images)
    known = read_labels(labels, collection)
    by_item = {source.item: source.path.resolve() for source in collection.sources}
    found: dict[str, list[tuple[Path, str]]] = defaultdict(list)
    for item, split in known.split_of.items():
        found[split].append((by_item[item], known.class_names[known.class_of[item]]))
    return found


def write_table(file: Path, rows: Sequence[tuple[Path, str, str]]) -> None:
    """A table path,class_id,split."""
    with file.open("w", newline="", encoding="utf-8") as opened:
        csv.writer(opened).writerows([("path", "class_id", "split"), *rows])


def table(results: Mapping[tuple[str, str], Sequence[Judged]]) -> str:
    """Markdown: a line for each draw and method, mean ± standard deviation over the seeds, in percent."""
    head = ["labels", "method", *(f"{metric}, {place}" for place in PLACES.values() for metric in METRICS)]
    lines = [head, ["---"] * len(head)]
    for labels in dict.fromkeys(labels for labels, _ in results):
        of = {method: cells for (named, method), cells in results.items() if named == labels}
        judged = next((cells for method, cells in of.items() if method != _ALONE), [])
        lines += [[labels, name, *_values(judged, who)] for who, name in BEFORE.items() if judged]
        lines += [[labels, method, *_values(cells, "trained")] for method, cells in of.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _values(cells: Sequence[Judged], who: str) -> list[str]:
    return [
        _spread([cell[place][who][metric] for cell in cells if place in cell])
        for place in PLACES
        for metric in METRICS.values()
    ]


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "–"
    deviation = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):.1f}{deviation}"


if __name__ == "__main__":
    main(sys.argv[1:])
