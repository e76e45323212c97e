"""`kinsight evaluate`: the metrics it prints, any R@k, and queries among a gallery."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from clients.cli.command import kinsight
from indexer.encoder import Encoder
from indexer.pixels import decode
from indexer.store import Store

CLASSES = 5


@pytest.fixture
def labels(photos: Path, tmp_path: Path) -> Path:
    """A labels table of the photos: 20 to learn from, 10 queries and 30 of a gallery."""
    files = sorted(photos.rglob("[0-9]*.*"), key=lambda path: path.stem)
    rows = [
        f"{path.relative_to(photos)},{row % CLASSES},{'train' if row < 20 else 'query' if row < 30 else 'gallery'}"
        for row, path in enumerate(files)
    ]
    table = tmp_path / "labels.csv"
    table.write_text("\n".join(["path,class_id,split", *rows]) + "\n")
    return table


def evaluate(store: Store, model: str, photos: Path, labels: Path, *options: str) -> Result:
    """The verb on a CPU."""
    words = ["evaluate", model, str(photos), "--labels", str(labels), "--store", str(store.root), "--device", "cpu"]
    return CliRunner().invoke(kinsight, [*words, *options])


def embedded(store: Store, model: str, photos: Path, labels: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings and classes of a split, read from the table itself."""
    encoder = Encoder.open(store.models / model, device="cpu")
    rows = [row.split(",") for row in labels.read_text().splitlines()[1:]]
    mine = [(photos / path, int(name)) for path, name, of in rows if of == split]
    pixels = np.stack([decode(path.read_bytes(), encoder.pixels) for path, _ in mine])
    return encoder.embed(pixels), np.array([name for _, name in mine])


def test_queries_are_searched_among_the_gallery(photos: Path, labels: Path, store: Store, tiny_model: str) -> None:
    """Each query's neighbours are of the gallery alone, and R@k is told for each k asked for, and for 1."""
    result = evaluate(store, tiny_model, photos, labels, "--recall-at", "10,3", "--json")

    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    queries, wanted = embedded(store, tiny_model, photos, labels, "query")
    gallery, known = embedded(store, tiny_model, photos, labels, "gallery")
    hits = known[np.argsort(-queries @ gallery.T, axis=1)] == wanted[:, None]
    expected = {f"recall_at_{k}": hits[:, :k].any(axis=1).mean() for k in (1, 3, 10)}
    assert expected == pytest.approx({name: value for name, value in found.items() if "recall" in name})
    assert found["queries"] == 10


def test_metrics_are_printed_by_name(photos: Path, labels: Path, store: Store, tiny_model: str) -> None:
    """Without --json, one metric a line: R@1, 2, 4 and 8, and all the others."""
    result = evaluate(store, tiny_model, photos, labels)

    names = "model recall_at_1 recall_at_2 recall_at_4 recall_at_8 map_at_r r_precision knn_accuracy nmi ami queries"
    assert names.split() == [line.split()[0] for line in result.stdout.splitlines()]
    assert "1.0000" not in result.stdout.splitlines()[1]


def test_images_that_nobody_labelled_are_counted(
    photos: Path, labels: Path, store: Store, tiny_model: str, tmp_path: Path
) -> None:
    """Rows without a class, rows that repeat another and images without a row are told: on stderr and as JSON."""
    header, *rows = labels.read_text().splitlines()
    blank = [f"{row.split(',')[0]},,query" for row in rows[55:58]]
    table = tmp_path / "some.csv"
    table.write_text("\n".join([header, *rows[:55], *blank, rows[50]]) + "\n")
    told = [
        f"{table}: 3 rows have no class_id: their images count as unlabelled",
        f"{table}: 1 rows repeat an earlier one",
        f"5 of the 60 images have no class in {table}: none is searched with or found",
    ]

    result = evaluate(store, tiny_model, photos, table, "--json")

    assert json.loads(result.stdout)["warnings"] == told
    assert [line for line in result.stderr.splitlines() if "warning" in line] == [f"warning: {line}" for line in told]
    assert json.loads(evaluate(store, tiny_model, photos, labels, "--json").stdout)["warnings"] == []


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("1,two", "'1,two' is not a list of whole numbers by comma"),
        ("", "'' is not a list of whole numbers"),
        ("10,0", "0 is below 1, the nearest neighbour"),
    ],
)
def test_a_list_that_can_not_be_read_is_a_wrong_call(given: str, said: str, store: Store, tmp_path: Path) -> None:
    """A k that is no whole number from 1 is refused before any work."""
    result = evaluate(store, "model", tmp_path, tmp_path / "labels.csv", "--recall-at", given)
    assert result.exit_code == 2
    assert said in result.stderr
