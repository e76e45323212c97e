"""Small real stores, made without the trainer and the builder, and real servers on them."""

import asyncio
import dataclasses
import io
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from indexer import ivfpq, manifest, pixels
from indexer.encoder import Encoder
from indexer.items import ItemWriter
from indexer.manifest import ModelManifest, VersionManifest
from indexer.pixels import PixelSpec
from indexer.plan import plan
from indexer.rows import RowWriter
from indexer.store import Store
from indexer.version import CODES, ITEMS, ROWS, activate, version_dir
from server import app
from server.admission import Admission

Floats = npt.NDArray[np.float32]

SIZE, DIM = 16, 16
SPEC = PixelSpec(size=SIZE)


def photo(seed: int, side: int = 48) -> bytes:
    """A PNG of coarse random colours; another seed, another picture."""
    blocks = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    data = io.BytesIO()
    Image.fromarray(blocks).resize((side, side), Image.Resampling.NEAREST).save(data, "PNG")
    return data.getvalue()


def make_model(store: Store, seed: int = 0) -> str:
    """Publish a model that projects pixels with a random matrix; returns its id."""
    staging = store.models / f"staging-{seed}"
    staging.mkdir(parents=True)
    projection = np.random.default_rng(seed).normal(size=(SIZE * SIZE * 3, DIM)).astype(np.float32)
    onnx.save(_graph(projection), staging / "model.onnx")
    (staging / "probe.png").write_bytes(photo(999))
    flat = (pixels.decode(photo(999), SPEC).reshape(-1) / np.float32(127.5) - 1) @ projection
    np.save(staging / "probe.npy", flat / np.linalg.norm(flat))
    model = manifest.model_id(manifest.record_files(staging), SPEC)
    fields = {"weights": "none", "objective": "none", "recipe": {}, "images": 0, "metrics": {}, "parity": {}}
    description = ModelManifest(
        id=model, dim=DIM, pixels=SPEC, backbone="projection", software={}, licence="none", **fields
    )
    manifest.publish(staging, store.models / model, description)
    return model


def make_version(
    store: Store, name: str, number: int, model: str, items: Sequence[str], embeddings: Floats, nprobe: int = 0
) -> Path:
    """Publish and activate a version with these items and (N, D) unit-length embeddings."""
    count, dim = embeddings.shape
    chosen = plan(count, dim)
    chosen = dataclasses.replace(chosen, nprobe=nprobe or chosen.nprobe)
    staging = store.index(name) / f"staging-{number}"
    staging.mkdir(parents=True)
    with RowWriter(staging / ROWS, dim) as rows, ItemWriter(staging / ITEMS) as table:
        rows.append(embeddings)
        rows.finish()
        for row, item in enumerate(items):
            table.add(row, item, Path(item), "")
        table.commit()
    if chosen.kind == "ivfpq":
        index = ivfpq.train(chosen, embeddings[: chosen.train_rows], use_gpu=False)
        ivfpq.add(index, embeddings, lambda done: None)
        ivfpq.save(index, staging / CODES)
    description = VersionManifest(
        index=name,
        version=number,
        model=model,
        dim=dim,
        count=count,
        plan=dataclasses.asdict(chosen),
        skipped=0,
        recall={},
        build={},
        software={},
    )
    target = manifest.publish(staging, version_dir(store.index(name), number), description)
    activate(store.index(name), number)
    return target


@dataclass
class Photos:
    """A store with one index of photographs.

    Attributes:
        store: with the model and version 1 of the index `photos`.
        model: its id.
        items: the index's, by row; `item 7` is `photo(7)`.
        embeddings: (N, D), by row.
    """

    store: Store
    model: str
    items: list[str]
    embeddings: Floats


def make_photos(root: Path, count: int = 24) -> Photos:
    """A store whose index `photos` holds `photo(0)` to `photo(count - 1)`."""
    store = Store(root)
    model = make_model(store)
    encoder = Encoder.open(store.model(model), threads=1)
    embeddings = encoder.embed(np.stack([pixels.decode(photo(seed), SPEC) for seed in range(count)]))
    items = [f"some class/{seed}.png" for seed in range(count)]
    make_version(store, "photos", 1, model, items, embeddings)
    return Photos(store, model, items, embeddings)


@dataclass
class Served:
    """A server that runs on its own thread and event loop."""

    target: str
    running: app.Running
    loop: asyncio.AbstractEventLoop = field(repr=False)

    def call(self, function: Callable[[], None]) -> None:
        """Run something on the server's event loop, and wait for it."""

        async def on_loop() -> None:
            function()

        asyncio.run_coroutine_threadsafe(on_loop(), self.loop).result(10)


@contextmanager
def serving(
    store: Store, *, index: str | None = None, admission: Admission | None = None, port: int = 0
) -> Iterator[Served]:
    """A real server in this process, drained at the end."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        start = app.start(store, listen=f"127.0.0.1:{port}", index=index, admission=admission)
        running = asyncio.run_coroutine_threadsafe(start, loop).result(30)
        try:
            yield Served(f"127.0.0.1:{running.port}", running, loop)
        finally:
            asyncio.run_coroutine_threadsafe(app.drain(running), loop).result(30)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


def _graph(projection: Floats) -> onnx.ModelProto:
    constants = {
        "shape": np.array([-1, SIZE * SIZE * 3], np.int64),
        "scale": np.array(127.5, np.float32),
        "one": np.array(1, np.float32),
        "projection": projection,
    }
    nodes = [
        helper.make_node("Cast", ["pixels"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["float", "shape"], ["flat"]),
        helper.make_node("Div", ["flat", "scale"], ["scaled"]),
        helper.make_node("Sub", ["scaled", "one"], ["centred"]),
        helper.make_node("MatMul", ["centred", "projection"], ["projected"]),
        helper.make_node("LpNormalization", ["projected"], ["embedding"], axis=1, p=2),
    ]
    graph = helper.make_graph(
        nodes,
        "projection",
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["B", SIZE, SIZE, 3])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["B", DIM])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
