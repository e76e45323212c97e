"""What a training run measures of its model, on queries and a gallery."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.trainer import network, small
from tests.trainer.small import silent
from trainer.encoders import Encoder, make_backbone
from trainer.images import ImageCache
from trainer.judging import centre, embed_images, evaluate, neighbour_precision, spread
from trainer.recipe import load, override
from trainer.run import train

TINY = (*small.TINY, "run.epochs=1")


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


@pytest.mark.parametrize("total", [3, 500, 501, 999, 1_000, 1_499])
def test_a_sample_is_spread_over_the_whole_training_set(total: int) -> None:
    """As many as are asked for, from the first image to nearly the last: folders often lie class by class."""
    rows = spread(total, 500)

    assert len(set(rows)) == min(total, 500)
    assert rows == sorted(rows)
    assert rows[0] == 0
    assert total - rows[-1] <= -(-total // 500)


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
    assert {"knn_accuracy", "map_at_r", "contrast"} <= epoch.keys()
    for name in ("neighbour_precision", "pseudo_label_precision"):
        assert 0 < epoch[name] < 1  # of the training images, whose labels only measure
    assert "pseudo-label precision" in (report.report or tmp_path).read_text(encoding="utf-8")
    assert not {"nmi", "ami"} & epoch.keys()


def naive_precision(embeddings: Tensor, classes: Tensor) -> float:
    shares = []
    labelled = [i for i in range(len(classes)) if classes[i] >= 0]
    for i in labelled:
        own = sum(int(classes[j] == classes[i]) for j in labelled if j != i)
        near = sorted((j for j in labelled if j != i), key=lambda j: -float(embeddings[i] @ embeddings[j]))
        k = min(5, own)
        if own:
            shares.append(sum(int(classes[j] == classes[i]) for j in near[:k]) / k)
    return sum(shares) / len(shares)


@pytest.mark.parametrize("kinds", [2, 8, 20])
def test_neighbour_precision_is_that_of_a_plain_loop(kinds: int) -> None:
    """Of large and small classes, with images of no known class and images alone in theirs left out."""
    draw = torch.Generator().manual_seed(kinds)
    classes = torch.randint(-1, kinds, (50,), generator=draw)
    classes[0] = kinds  # alone in its class
    embeddings = F.normalize(torch.randn(50, 6, generator=draw), dim=1)
    assert neighbour_precision(embeddings @ embeddings.T, classes) == pytest.approx(
        naive_precision(embeddings, classes)
    )


def test_neighbour_precision_of_too_few_images_is_unknown() -> None:
    """Without labels, or with nearly all images alone in their class, there is no share."""
    embeddings = F.normalize(torch.randn(50, 6, generator=torch.Generator().manual_seed(0)), dim=1)
    assert neighbour_precision(embeddings @ embeddings.T, torch.full((50,), -1)) is None
    assert neighbour_precision(embeddings @ embeddings.T, torch.arange(50)) is None


def test_a_centred_encoder_has_the_samples_mean_at_its_origin() -> None:
    """Centring moves all embeddings alike, so that their mean is zero and no distance changes."""
    backbone = make_backbone(network.NAME, "none", size=32)
    encoder = Encoder(backbone, nn.Linear(backbone.channels, 8)).eval()
    pixels = torch.randint(0, 256, (40, 32, 32, 3), dtype=torch.uint8)
    sample = ImageCache(pixels, torch.ones(40), tuple(map(str, range(40))), ())
    images = pixels.permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        before = encoder(images)
        centre(encoder, sample, torch.device("cpu"), silent)
        after = encoder(images)
    torch.testing.assert_close(before - before.mean(0), after)


def test_a_gpu_embeds_more_images_at_once() -> None:
    """What judges an epoch goes through the network in passes of the size that the device is fed with elsewhere."""
    cache = ImageCache(torch.zeros(40, 224, 224, 3, dtype=torch.uint8), torch.ones(40), ("",) * 40, ())
    passes: list[int] = []

    def embed(pixels: Tensor) -> Tensor:
        passes.append(len(pixels))
        return torch.zeros(len(pixels), 2)

    for device in ("cpu", "cuda"):
        assert embed_images(cache, embed, silent, torch.device(device)).shape == (40, 2)
    assert passes == [16, 16, 8, 40]
