"""What a training run measures of its model, on queries and a gallery."""

import json
from pathlib import Path

import pytest

from trainer.recipe import load, override
from trainer.run import evaluate, train

TINY = (
    "data.size=32",
    "data.cache_size=40",
    "encoder.backbone=test_resnet",
    "encoder.weights=none",
    "encoder.dim=16",
    "run.batch_size=20",
    "run.epochs=1",
)


def silent(stage: str, done: int, total: int) -> None:
    """No progress shown."""


@pytest.fixture
def labels(photos: Path) -> Path:
    """A labels table of the photos: 30 to learn from, 10 queries and 20 of a gallery, of four classes."""
    rows = ["path,class_id,split"]
    for path in sorted(photos.rglob("[0-9]*.*")):
        number = int(path.stem)
        split = "train" if number < 30 else "query" if number < 40 else "gallery"
        rows.append(f"{path.relative_to(photos)},{number % 4},{split}")
    table = photos / "labels.csv"
    table.write_text("\n".join(rows) + "\n")
    return table


def test_queries_are_judged_among_a_gallery_and_clusters_at_the_end(
    photos: Path, labels: Path, tmp_path: Path
) -> None:
    """Query and gallery are not learned from; epochs are judged without a clustering, frozen and trained with it."""
    report = train(
        photos,
        models=tmp_path / "models",
        runs=tmp_path / "runs",
        recipe=override(load("stml"), *TINY),
        labels=labels,
        device="cpu",
        progress=silent,
    )

    assert report.images == 30
    assert report.frozen is not None
    assert report.trained is not None
    assert report.frozen.queries == report.trained.queries == 10
    assert None not in (report.frozen.nmi, report.frozen.ami, report.trained.nmi, report.trained.ami)
    assert report.model.metrics["trained.ami"] == report.trained.ami
    assert report.trained == evaluate(tmp_path / "models" / report.model.id, photos, labels, progress=silent)[0]
    curve = [json.loads(line) for line in (tmp_path / "runs" / report.run / "metrics.jsonl").read_text().splitlines()]
    (epoch,) = [line for line in curve if "recall_at_1" in line]
    assert {"knn_accuracy", "map_at_r"} <= epoch.keys()
    assert not {"nmi", "ami"} & epoch.keys()
