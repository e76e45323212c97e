"""What a rebuild that learns is worth: half of the training classes are indexed, the others come as new images.

Run: python tests/benchmarks/learning_on.py --labels CSV --out DIR [--seed 0] [--set section.key=value ...]

CSV is a table path,class_id,split with the splits train and test, beside its images. All is done by the commands that
a person has, each a process of its own: `train` and `index build` on the photos of every other training class,
`serve`, and then `rebuild --learn` with those of the rest, while two clients search by image, ten times a second
each. Both models are judged on the classes of the split test, which neither learned from. Every answer is checked: it
has to be what its version always gives to that image. The same command again goes on where an interrupted one ended.
"""

import argparse
import csv
import json
import shlex
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kinsight_client import Client, KinsightError

from tests.benchmarks.ladder import commit

INDEX, CLIENTS, QUERIES, PAUSE_S = "photos", 2, 64, 0.1


def main(argv: Sequence[str]) -> None:
    """Train, index, serve, rebuild under searches, judge, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", type=Path, required=True, help="a table path,class_id,split")
    parser.add_argument("--out", type=Path, required=True, help="where tables, the store and results are kept")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="SECTION.KEY=VALUE")
    arguments = parser.parse_args(argv)
    first, added, judges = (table.resolve() for table in tables(arguments.labels, arguments.out))
    store = ("--store", str(arguments.out / "store"))
    learned = trained(arguments, first, judges, store)
    if not (arguments.out / "store" / "indexes" / INDEX).exists():
        kinsight("index", "build", INDEX, first, "--model", learned["model"], *store)
    with server(store) as target, searches(target, first) as answers:
        rebuilt = kinsight("rebuild", INDEX, "--images", added, "--learn", *store)
        time.sleep(5)  # the new version is searched, too
    print(json.dumps({"rebuilt": rebuilt}, indent=1), file=sys.stderr)
    judged = {
        "frozen": learned["frozen"],
        "before": evaluated(learned["model"], judges, store),
        "after": evaluated(rebuilt["model"], judges, store),
    }
    print("| unseen classes | R@1 | MAP@R |\n|---|---|---|")
    for name, figures in judged.items():
        print(f"| {name} | {figures['recall_at_1']:.3f} | {figures['map_at_r']:.3f} |")
    print(f"\nactivated: {rebuilt['activated']}; {rebuilt['refused'] or 'nothing spoke against it'}")
    print(f"searches meanwhile: {answers.total():,}, {dict(answers)}")
    print(f"\n    python tests/benchmarks/learning_on.py {shlex.join(argv)}\n\ncommit: {commit()}")


def tables(labels: Path, out: Path) -> Iterator[Path]:
    """The photos of every other training class, those of the rest, and what is judged, each a table of its own."""
    out.mkdir(parents=True, exist_ok=True)
    with labels.open(newline="", encoding="utf-8") as opened:
        rows = list(csv.DictReader(opened))
    classes = sorted({row["class_id"] for row in rows if row["split"] == "train"})
    parts = {"first": set(classes[::2]), "added": set(classes[1::2])}
    for name, of in parts.items():
        yield _written(
            out / f"{name}.csv", labels, [r for r in rows if r["split"] == "train" and r["class_id"] in of]
        )
    yield _written(out / "judges.csv", labels, [row for row in rows if row["split"] == "test"])


def _written(table: Path, labels: Path, rows: Sequence[dict[str, str]]) -> Path:
    with table.open("w", newline="", encoding="utf-8") as opened:
        writer = csv.writer(opened)
        writer.writerow(("path", "class_id", "split"))
        writer.writerows((labels.parent.resolve() / row["path"], row["class_id"], row["split"]) for row in rows)
    return table


def trained(arguments: argparse.Namespace, first: Path, judges: Path, store: Sequence[str]) -> dict[str, Any]:
    """What `kinsight train` found on the first half; learned once."""
    kept: Path = arguments.out / "trained.json"
    if not kept.exists():
        table = arguments.out / "first-judged.csv"  # one collection: what judges is not learned from
        table.write_text(first.read_text() + judges.read_text().split("\n", 1)[1])
        begun = (arguments.out / "store" / "runs" / "first" / "recipe.toml").exists()
        options = [option for setting in arguments.set for option in ("--set", setting)]
        anew = ("--run", "first", "--seed", arguments.seed, *options)
        found = kinsight("train", table, "--labels", table, *(("--resume", "first") if begun else anew), *store)
        kept.write_text(json.dumps(found))
    return dict(json.loads(kept.read_text()))


def evaluated(model: str, judges: Path, store: Sequence[str]) -> dict[str, Any]:
    """A model's retrieval metrics on the classes that nothing was learned from."""
    return kinsight("evaluate", model, judges, "--labels", judges, *store)


def kinsight(*arguments: object) -> dict[str, Any]:
    """One command, as a person runs it, and its JSON; its progress goes to stderr."""
    command = [sys.executable, "-m", "clients.cli", *map(str, arguments), "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if not done.stdout:
        raise SystemExit(f"{shlex.join(command)} ended with {done.returncode}")
    return dict(json.loads(done.stdout))  # a refused version is an answer too


@contextmanager
def server(store: Sequence[str]) -> Iterator[str]:
    """`kinsight serve` on a free port; its address."""
    command = [sys.executable, "-m", "clients.cli", "serve", "--listen", "127.0.0.1:0", "--json", *store]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"127.0.0.1:{json.loads(process.stdout.readline())['port']}"
        finally:
            process.terminate()


@contextmanager
def searches(target: str, table: Path) -> Iterator[Counter[str]]:
    """Clients that search by image all the while; how many answers there were, by what they were."""
    with table.open(newline="", encoding="utf-8") as opened:
        paths = [row["path"] for row in csv.DictReader(opened)]
    images = [Path(path).read_bytes() for path in paths[:: max(1, len(paths) // QUERIES)][:QUERIES]]
    found: defaultdict[tuple[int, int], set[tuple[str, ...]]] = defaultdict(set)
    answers: Counter[str] = Counter()
    stop = threading.Event()
    threads = [threading.Thread(target=_search, args=(target, images, found, answers, stop)) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    try:
        yield answers
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    answers["of no version"] = sum(len(hits) - 1 for hits in found.values())


def _search(
    target: str,
    images: Sequence[bytes],
    found: dict[tuple[int, int], set[tuple[str, ...]]],
    answers: Counter[str],
    stop: threading.Event,
) -> None:
    with Client(target, timeout_s=60) as client:
        while not stop.is_set():
            for place, image in enumerate(images):
                try:
                    answer = client.search(image=image, top_k=10)
                except KinsightError as error:
                    answers[f"failed: {error}"] += 1
                    continue
                answers[f"version {answer.version}"] += 1
                found[answer.version, place].add(tuple(hit.item for hit in answer.hits))
                if stop.wait(PAUSE_S):
                    return


if __name__ == "__main__":
    main(sys.argv[1:])
