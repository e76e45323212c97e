"""The table of errors, row by row, from a real server."""

import dataclasses
import logging
import shutil
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import grpc
import numpy as np
import pytest
from google.protobuf import any_pb2  # type: ignore[import-untyped]
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from kinsight.v1.search_service_pb2 import Embedding, SearchParams, SearchRequest

from indexer import manifest, pixels
from indexer.adopt import open_catalog
from indexer.catalog import CATALOG
from indexer.store import Store
from server import answers
from server.admission import Admission
from tests.serving import SPEC, Gallery, Served, make_version, photo, serving, stub_of


def _embedding(gallery: Gallery, values: list[float], model: str = "") -> SearchRequest:
    return SearchRequest(embedding=Embedding(model=model or gallery.model, values=values))


def _bomb() -> bytes:
    """A PNG header that claims 30,000 × 30,000 pixels."""
    data = bytearray(photo(0))
    data[16:24] = (30_000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")  # the header chunk's checksum
    return bytes(data)


REQUESTS: dict[str, tuple[Callable[[Gallery], SearchRequest], str]] = {
    "text as an image": (lambda g: SearchRequest(image=b"not an image"), "IMAGE_DECODE_FAILED"),
    "an empty image": (lambda g: SearchRequest(image=b""), "IMAGE_DECODE_FAILED"),
    "a truncated image": (lambda g: SearchRequest(image=photo(1)[:100]), "IMAGE_DECODE_FAILED"),
    "a decompression bomb": (lambda g: SearchRequest(image=_bomb()), "IMAGE_TOO_LARGE"),
    "no query": (lambda g: SearchRequest(), "QUERY_MISSING"),
    "top_k 0": (lambda g: SearchRequest(item=g.items[0], top_k=0), "TOP_K_OUT_OF_RANGE"),
    "top_k -1": (lambda g: SearchRequest(item=g.items[0], top_k=-1), "TOP_K_OUT_OF_RANGE"),
    "top_k 1001": (lambda g: SearchRequest(item=g.items[0], top_k=1001), "TOP_K_OUT_OF_RANGE"),
    "nprobe 0": (lambda g: SearchRequest(item=g.items[0], params=SearchParams(nprobe=0)), "NPROBE_OUT_OF_RANGE"),
    "too few values": (lambda g: _embedding(g, [1.0, 2.0]), "DIMENSION_MISMATCH"),
    "no values": (lambda g: _embedding(g, []), "DIMENSION_MISMATCH"),
    "NaN": (lambda g: _embedding(g, [float("nan")] * g.embeddings.shape[1]), "EMBEDDING_NOT_FINITE"),
    "infinity": (lambda g: _embedding(g, [float("inf")] * g.embeddings.shape[1]), "EMBEDDING_NOT_FINITE"),
    "all zero": (lambda g: _embedding(g, [0.0] * g.embeddings.shape[1]), "EMBEDDING_ZERO"),
    "another model's": (lambda g: _embedding(g, [1.0], model="other"), "MODEL_MISMATCH"),
    "a name of 100,000 letters": (lambda g: SearchRequest(item="\U0001f431" * 100_000), "ITEM_NOT_FOUND"),
    "an index's of as many": (lambda g: SearchRequest(index="i" * 100_000, item="a"), "INDEX_NOT_FOUND"),
    "a model's of as many": (lambda g: _embedding(g, [1.0], model="\U0001f431" * 100_000), "MODEL_MISMATCH"),
    "a score of unknown kind": (
        lambda g: SearchRequest(item=g.items[0], score_kind=99),  # type: ignore[arg-type]
        "SCORE_KIND_UNKNOWN",
    ),
    "an unknown item": (lambda g: SearchRequest(item="nobody.png"), "ITEM_NOT_FOUND"),
    "an unknown index": (lambda g: SearchRequest(index="nothing", item="a"), "INDEX_NOT_FOUND"),
}


@contextmanager
def _copied(gallery: Gallery, root: Path) -> Iterator[Gallery]:
    shutil.copytree(gallery.store.root, root / "store")
    yield dataclasses.replace(gallery, store=Store(root / "store"))


@contextmanager
def _empty_store(gallery: Gallery, root: Path) -> Iterator[Served]:
    with serving(Store(root / "empty")) as served:
        yield served


@contextmanager
def _full(gallery: Gallery, root: Path) -> Iterator[Served]:
    with serving(gallery.store, admission=Admission(max_requests=0)) as served:
        yield served


@contextmanager
def _draining(gallery: Gallery, root: Path) -> Iterator[Served]:
    with serving(gallery.store) as served:
        served.call(served.running.admission.drain)
        yield served


@contextmanager
def _tampered(gallery: Gallery, root: Path) -> Iterator[Served]:
    with _copied(gallery, root) as copy:
        rows = copy.store.index("photos") / "versions" / "1" / "rows.faiss"
        rows.write_bytes(rows.read_bytes()[:-1] + b"x")
        with serving(copy.store) as served:
            yield served


@contextmanager
def _damaged_pointer(gallery: Gallery, root: Path) -> Iterator[Served]:
    with _copied(gallery, root) as copy:
        (copy.store.index("photos") / "active").write_text("newest\n")
        with serving(copy.store) as served:
            yield served


@contextmanager
def _damaged_catalog(gallery: Gallery, root: Path) -> Iterator[Served]:
    with _copied(gallery, root) as copy:
        open_catalog(copy.store.index("photos")).close()
        (copy.store.index("photos") / CATALOG).write_bytes(b"not a catalogue" * 100)
        with serving(copy.store) as served:
            yield served


@contextmanager
def _of_another_model(gallery: Gallery, root: Path, change: Callable[[Path], None]) -> Iterator[Served]:
    """A model is what a change makes of the gallery's."""
    with _copied(gallery, root) as copy:
        good, staging = copy.store.model(copy.model), copy.store.models / "staging"
        shutil.copytree(good, staging)
        (staging / "manifest.json").unlink()
        change(staging)
        identity = manifest.model_id(manifest.record_files(staging), SPEC)
        description = dataclasses.replace(manifest.read_model(good), id=identity)
        manifest.publish(staging, copy.store.models / identity, description)
        make_version(copy.store, "photos", 2, identity, gallery.items, gallery.embeddings)
        shutil.rmtree(copy.store.index("photos") / "versions" / "1")  # which would be served instead
        with serving(copy.store) as served:
            yield served


def _wrong_probe(gallery: Gallery, root: Path) -> AbstractContextManager[Served]:
    def roll(model: Path) -> None:
        np.save(model / "probe.npy", np.roll(np.load(model / "probe.npy"), 1))

    return _of_another_model(gallery, root, roll)


def _unreadable_graph(gallery: Gallery, root: Path) -> AbstractContextManager[Served]:
    """As one is to an ONNX Runtime that is older than its operators."""

    def overwrite(model: Path) -> None:
        (model / "model.onnx").write_bytes(b"not a graph")

    return _of_another_model(gallery, root, overwrite)


@contextmanager
def _without_model(gallery: Gallery, root: Path) -> Iterator[Served]:
    with _copied(gallery, root) as copy:
        shutil.rmtree(copy.store.model(copy.model))
        with serving(copy.store) as served:
            yield served


@contextmanager
def _broken_inside(gallery: Gallery, root: Path) -> Iterator[Served]:
    with serving(gallery.store) as served:
        served.running.indexes.get("photos").version._items._connection.close()
        yield served


SERVERS = {
    "no index yet": (_empty_store, "NO_INDEX"),
    "as many requests as allowed": (_full, "OVERLOADED"),
    "shutting down": (_draining, "DRAINING"),
    "a changed file": (_tampered, "INDEX_CORRUPT"),
    "a damaged catalogue": (_damaged_catalog, "CATALOG_CORRUPT"),
    "a damaged pointer": (_damaged_pointer, "INDEX_CORRUPT"),
    "a model that was removed": (_without_model, "MODEL_MISSING"),
    "another graph's probe": (_wrong_probe, "MODEL_PROBE_MISMATCH"),
    "a graph that can't be opened": (_unreadable_graph, "MODEL_NOT_USABLE"),
    "a failure that nobody foresaw": (_broken_inside, "INTERNAL"),
}

CODES = {answer.reason: answer for answer in answers.TABLE.values()}


def _failure(served: Served, request: SearchRequest) -> grpc.RpcError:
    with grpc.insecure_channel(served.target) as channel:
        stub = stub_of(channel)
        with pytest.raises(grpc.RpcError) as caught:
            stub.Search(request, timeout=10)
    return caught.value


def _text(error: grpc.RpcError) -> str:
    return error.details() or ""


def _details(error: grpc.RpcError) -> dict[str, any_pb2.Any]:
    status = rpc_status.from_call(error)
    assert status is not None
    return {detail.TypeName().rpartition(".")[2]: detail for detail in status.details}


def _error_info(error: grpc.RpcError) -> error_details_pb2.ErrorInfo:
    info = error_details_pb2.ErrorInfo()
    assert _details(error)["ErrorInfo"].Unpack(info)
    return info


@pytest.mark.parametrize("name", REQUESTS)
def test_a_bad_request_is_answered_by_the_table(name: str, served: Served, gallery: Gallery) -> None:
    """Code, reason, domain, and the field at fault where there is one."""
    make, reason = REQUESTS[name]
    error = _failure(served, make(gallery))
    info = _error_info(error)
    assert (info.reason, info.domain, error.code()) == (reason, "kinsight", CODES[reason].code)
    if CODES[reason].field:
        bad = error_details_pb2.BadRequest()
        assert _details(error)["BadRequest"].Unpack(bad)
        assert [violation.field for violation in bad.field_violations] == [CODES[reason].field]


@pytest.mark.parametrize("name", SERVERS)
def test_a_server_in_trouble_answers_by_the_table(name: str, gallery: Gallery, tmp_path: Path) -> None:
    """Code, reason, and when to try again where trying again can help."""
    prepare, reason = SERVERS[name]
    with prepare(gallery, tmp_path) as served:
        error = _failure(served, SearchRequest(item=gallery.items[0]))
    expected = CODES.get(reason, answers.Answer(grpc.StatusCode.INTERNAL, "INTERNAL"))
    assert (_error_info(error).reason, error.code()) == (reason, expected.code)
    assert ("RetryInfo" in _details(error)) == expected.retry


def test_every_row_of_the_table_is_tested() -> None:
    """A new row needs a new case, here or in the test of its service."""
    tests = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    untested = [reason for reason in CODES if f'"{reason}"' not in tests]
    assert untested == []


def test_a_model_mismatch_names_both_models(served: Served, gallery: Gallery) -> None:
    """In the text for people, in ErrorInfo and PreconditionFailure for programs."""
    error = _failure(served, _embedding(gallery, [1.0], model="other"))
    assert "'other'" in _text(error)
    assert gallery.model in _text(error)
    assert dict(_error_info(error).metadata) == {"embedding_model": "other", "index_model": gallery.model}
    assert "PreconditionFailure" in _details(error)


def test_an_unknown_index_is_answered_with_those_there_are(served: Served) -> None:
    """Whoever mistypes a name sees the right one."""
    error = _failure(served, SearchRequest(index="photo", item="a"))
    assert _text(error) == "no index 'photo' is served; there are: photos"


def test_an_internal_error_is_logged_with_its_stack_and_answered_without(
    gallery: Gallery, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither the exception's text nor its stack leaves the server."""
    with caplog.at_level(logging.ERROR, "server.answers"), _broken_inside(gallery, tmp_path) as served:
        error = _failure(served, SearchRequest(item=gallery.items[0]))
    assert "closed" not in _text(error)
    assert "Traceback" not in _text(error)
    assert "Cannot operate on a closed database" in caplog.text
    assert "Traceback" in caplog.text


def test_an_error_does_not_end_the_server(served: Served, gallery: Gallery) -> None:
    """After every bad request a good one is answered."""
    with grpc.insecure_channel(served.target) as channel:
        stub = stub_of(channel)
        for make, _ in REQUESTS.values():
            with pytest.raises(grpc.RpcError):
                stub.Search(make(gallery), timeout=10)
            assert stub.Search(SearchRequest(item=gallery.items[3], top_k=1)).hits[0].item == gallery.items[3]


def test_a_message_above_the_limit_is_resource_exhausted(served: Served) -> None:
    """gRPC refuses it before it is read."""
    error = _failure(served, SearchRequest(image=bytes(33 * 2**20)))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert pixels.MAX_BYTES > 33 * 2**20
