"""Small real stores, made without the trainer and the builder, and real servers on them."""

import asyncio
import atexit
import dataclasses
import functools
import io
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self
from unittest.mock import patch

import grpc
import numpy as np
import numpy.typing as npt
import pytest
from google.longrunning import operations_pb2, operations_pb2_grpc
from google.rpc import code_pb2, error_details_pb2
from grpc_status import rpc_status
from kinsight.v1.index_service_pb2_grpc import IndexServiceStub
from kinsight.v1.item_service_pb2 import BatchDeleteItemsRequest, BatchUpsertItemsRequest, ItemUpsert
from kinsight.v1.item_service_pb2_grpc import ItemServiceStub
from kinsight.v1.model_service_pb2_grpc import ModelServiceStub
from kinsight.v1.search_service_pb2 import SearchRequest
from kinsight.v1.search_service_pb2_grpc import SearchServiceStub
from PIL import Image

from indexer import ivfpq, manifest, pixels, priority
from indexer.build import build
from indexer.calibration import Calibration
from indexer.encoder import Encoder
from indexer.items import ItemWriter
from indexer.manifest import VersionManifest
from indexer.pixels import PixelSpec
from indexer.plan import plan
from indexer.rows import RowWriter
from indexer.store import Store
from indexer.version import CODES, ITEMS, ROWS, activate, version_dir
from server import app, service_operations
from server.admission import Admission
from server.folders import Folders
from tests.conftest import TINY_SIZE, publish_tiny_model

Floats = npt.NDArray[np.float32]

SPEC = PixelSpec(size=TINY_SIZE)

CURVE = Calibration(
    similarities=(-1.0, 0.999, 1.0),
    probabilities=(0.0, 0.2, 1.0),
    method="isotonic",
    acceptance=((0.0, 1.0, 1.0), (0.5, 0.125, 0.75), (1.0, 0.0, 0.25)),
    ece_pairs=0.01,
    ece_hits=0.02,
    images=9,
    classes=3,
    same=9,
    different=27,
)

make_model = publish_tiny_model


def build_photos(root: Path, count: int = 24) -> Store:
    """A store whose index `photos` was built from the files of `photo(0)` to `photo(count - 1)` in `root/images`.

    It is a copy, as building one takes its time: the paths of its items lead to the images of the first.
    """
    shutil.copytree(_photos_built_once(count), root, dirs_exist_ok=True)
    return Store(root / "store")


@functools.cache
def _photos_built_once(count: int) -> Path:
    root = Path(tempfile.mkdtemp(prefix="kinsight-photos-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    images, store = root / "images", Store(root / "store")
    images.mkdir()
    for seed in range(count):
        (images / f"{seed:03}.png").write_bytes(photo(seed))
    build("photos", images, model=make_model(store), store=store, device="cpu", progress=lambda *_: None)
    return root


def photo(seed: int, side: int = 48) -> bytes:
    """A PNG of coarse random colours; another seed, another picture."""
    blocks = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    data = io.BytesIO()
    Image.fromarray(blocks).resize((side, side), Image.Resampling.NEAREST).save(data, "PNG")
    return data.getvalue()


def make_version(
    store: Store,
    name: str,
    number: int,
    model: str,
    items: Sequence[str],
    embeddings: Floats,
    activated: bool = True,
    measured: Sequence[dict[str, float]] = (),
) -> Path:
    """Publish, and activate, a version with these items, (N, D) unit-length embeddings and operating points."""
    count, dim = embeddings.shape
    chosen = plan(count, dim)
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
        plan=dataclasses.asdict(chosen) | {"measured": list(measured)},
        skipped=0,
        recall={},
        build={},
        software={},
    )
    target = manifest.publish(staging, version_dir(store.index(name), number), description)
    if activated:
        activate(store.index(name), number)
    return target


@dataclass
class Gallery:
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


def make_gallery(root: Path, count: int = 24) -> Gallery:
    """A store whose index `photos` holds `photo(0)` to `photo(count - 1)`."""
    store = Store(root)
    model = make_model(store)
    encoder = Encoder.open(store.model(model), threads=1)
    embeddings = encoder.embed(np.stack([pixels.decode(photo(seed), SPEC) for seed in range(count)]))
    items = [f"some class/{seed}.png" for seed in range(count)]
    make_version(store, "photos", 1, model, items, embeddings)
    return Gallery(store, model, items, embeddings)


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
    store: Store,
    *,
    index: str | None = None,
    admission: Admission | None = None,
    port: int = 0,
    folders: Folders = app.NO_FOLDERS,
) -> Iterator[Served]:
    """A real server in this process, drained at the end.

    It says at once that an operation is done, and closes its door without notice: nobody watches its health. Its
    children are no nicer than the tests, which wait for them: beside two busy workers they had a tenth of a core.
    """
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        listen = f"127.0.0.1:{port}"
        start = app.start(store, listen=listen, index=index, admission=admission, folders=folders)
        running = asyncio.run_coroutine_threadsafe(start, loop).result(30)
        try:
            with patch.object(service_operations, "LOOK_EVERY_S", 0.02), patch.object(priority, "NICENESS", 0):
                yield Served(f"127.0.0.1:{running.port}", running, loop)
        finally:
            with patch.object(app, "NOTICE_S", 0):
                asyncio.run_coroutine_threadsafe(app.drain(running), loop).result(30)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


SERVE = """
import sys
from pathlib import Path
from server.app import run
from indexer.store import Store
store, listen = Store(Path(sys.argv[1])), sys.argv[2]
run(store, listen=listen, index=None, ready=lambda port: print(port, flush=True))
"""


@contextmanager
def server_process(store: Store, listen: str = "127.0.0.1:0") -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server in a process of its own, and its target; killed at the end if it still runs."""
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE, str(store.root), listen],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            assert process.stdout is not None
            yield process, f"127.0.0.1:{process.stdout.readline().strip()}"
        finally:
            process.kill()


def stub_of(channel: grpc.Channel | grpc.aio.Channel) -> Any:
    """The generated stub, which has no types."""
    return SearchServiceStub(channel)  # type: ignore[no-untyped-call]


class Stubs:
    """A channel to a server, and every service that it answers; a context manager."""

    def __init__(self, target: str) -> None:
        self.target = target
        # A connection of its own, as every client process has; channels would share one otherwise.
        self._channel = grpc.insecure_channel(target, [("grpc.use_local_subchannel_pool", 1)])
        self.search: Any = SearchServiceStub(self._channel)  # type: ignore[no-untyped-call]
        self.items: Any = ItemServiceStub(self._channel)  # type: ignore[no-untyped-call]
        self.indexes: Any = IndexServiceStub(self._channel)  # type: ignore[no-untyped-call]
        self.models: Any = ModelServiceStub(self._channel)  # type: ignore[no-untyped-call]
        self.operations: Any = operations_pb2_grpc.OperationsStub(self._channel)

    def found(self, **request: Any) -> list[str]:
        """The ids of a search's hits."""
        return [hit.item for hit in self.search.Search(SearchRequest(**request), timeout=30).hits]

    def upsert(self, *items: ItemUpsert, **request: Any) -> list[Any]:
        """The results of a batch."""
        answer = self.items.BatchUpsertItems(BatchUpsertItemsRequest(items=items, **request), timeout=30)
        return list(answer.results)

    def delete(self, *items: str, **request: Any) -> list[Any]:
        """The results of a batch."""
        answer = self.items.BatchDeleteItems(BatchDeleteItemsRequest(items=items, **request), timeout=30)
        return list(answer.results)

    def ended(self, operation: Any, timeout_s: float = 60) -> Any:
        """An operation once it is done."""
        request = operations_pb2.WaitOperationRequest(name=operation.name)
        request.timeout.FromMilliseconds(int(timeout_s * 1000))
        done = self.operations.WaitOperation(request, timeout=timeout_s + 10)
        assert done.done, done
        return done

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()


def reason_of(error: grpc.RpcError | Any) -> tuple[str, str]:
    """The code and ErrorInfo's reason of a failed call, or of the google.rpc.Status of an item."""
    status = rpc_status.from_call(error) if isinstance(error, grpc.RpcError) else error
    for detail in status.details:
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info):
            return code_pb2.Code.Name(status.code), info.reason
    return code_pb2.Code.Name(status.code), ""


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> Gallery:
    """A store whose index `photos` holds 24 photographs; not to be changed."""
    return make_gallery(tmp_path_factory.mktemp("gallery"))


@pytest.fixture(scope="session")
def served(gallery: Gallery) -> Iterator[Served]:
    """A server on `gallery`; not to be drained."""
    with serving(gallery.store) as running:
        yield running
