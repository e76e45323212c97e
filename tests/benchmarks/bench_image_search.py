"""Search by image over gRPC against decode + encode alone: `python tests/benchmarks/bench_image_search.py`.

EfficientNet-Lite0 with random weights (speed does not depend on them) at 112 pixels, JPEG photographs of 500 × 375.
The clients are processes of their own on the same machine. Prints a table and one JSON line; takes half a minute.
"""

import json
import os
import tempfile
import time
from pathlib import Path

import numpy as np
from torch import nn

from indexer import pixels
from indexer.encoder import Encoder
from indexer.pixels import PixelSpec
from indexer.store import Store
from tests.benchmarks.bench_search import SECONDS, TOP_K, measure_served, print_rows, run_server
from tests.benchmarks.photographs import photograph
from tests.serving import make_version
from trainer.encoders import Encoder as TorchEncoder
from trainer.encoders import make_backbone
from trainer.export import Origin, export

BACKBONE, SIZE, DIM, PHOTOS = "tf_efficientnet_lite0", 112, 128, 64
BATCH = 16


def main() -> None:
    """Export a model, measure in-process, measure with 1 and 8 clients, print."""
    photos = [photograph(seed) for seed in range(PHOTOS)]
    with tempfile.TemporaryDirectory() as root:
        store = Store(Path(root))
        encoder = Encoder.open(store.model(make_encoder(store, photos)))
        rows = encoder.embed(np.stack([pixels.decode(photo, encoder.pixels) for photo in photos]))
        make_version(store, "photos", 1, encoder.model, [str(seed) for seed in range(PHOTOS)], rows)
        in_process = {f"batches of {batch}": measure_in_process(encoder, photos, batch) for batch in (1, BATCH)}
        searches = [{"image": photo, "top_k": TOP_K} for photo in photos]
        served = {"Search": measure_served(run_server, root, searches)}
    print(f"{BACKBONE} at {SIZE} pixels, JPEG 500 x 375, {os.cpu_count()} cores")
    print_rows(in_process, served)
    print(json.dumps({"in_process": in_process, "served": served}))


def make_encoder(store: Store, photos: list[bytes]) -> str:
    """Export the encoder into the store; returns the model's id."""
    backbone = make_backbone(BACKBONE, "none", size=SIZE)
    spec = PixelSpec(size=SIZE)
    sample = np.stack([pixels.decode(photo, spec) for photo in photos])
    origin = Origin(backbone=BACKBONE, weights="none", objective="none", recipe={}, images=0, licence="Apache-2.0")
    encoder = TorchEncoder(backbone, nn.Linear(backbone.channels, DIM))
    return export(encoder, spec, sample, store.models, origin, lambda opened: {}).id


def measure_in_process(encoder: Encoder, photos: list[bytes], batch: int) -> float:
    """Images/s of decode, one after the other, then encode together."""
    done, start = 0, time.perf_counter()
    while time.perf_counter() - start < SECONDS:
        chosen = [photos[(done + place) % PHOTOS] for place in range(batch)]
        encoder.embed(np.stack([pixels.decode(photo, encoder.pixels) for photo in chosen]))
        done += batch
    return done / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
