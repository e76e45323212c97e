"""The server as a whole: health, reflection, watching, shutting down."""

import asyncio
import contextlib
import errno
import json
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import pytest
from google.protobuf.descriptor_pool import DescriptorPool  # type: ignore[import-untyped]
from grpc import StatusCode
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from kinsight.v1.item_service_pb2 import ItemUpsert
from kinsight.v1.search_service_pb2 import SearchRequest

from indexer.store import Store
from server import app
from tests.serving import (
    Gallery,
    Served,
    Stubs,
    build_photos,
    make_gallery,
    make_version,
    photo,
    server_process,
    serving,
    stub_of,
)
from tests.waiting import until

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
BUF = Path(sys.executable).with_name("buf")


def _health(target: str, service: str = "") -> int:
    with grpc.insecure_channel(target) as channel:
        request = health_pb2.HealthCheckRequest(service=service)
        return int(health_pb2_grpc.HealthStub(channel).Check(request, timeout=5).status)


@pytest.fixture
def watchful(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server within the test sees what was activated at once, and not within a second."""
    monkeypatch.setattr(app, "WATCH_INTERVAL_S", 0.02)


@pytest.mark.parametrize("service", ["", "kinsight.v1.SearchService"])
def test_a_server_with_an_index_is_healthy(service: str, served: Served) -> None:
    """Overall and by service."""
    assert _health(served.target, service) == SERVING


def test_the_health_of_all_services_is_listed(served: Served) -> None:
    """As gRPC's health protocol has it, and reflection says."""
    with grpc.insecure_channel(served.target) as channel:
        listed = health_pb2_grpc.HealthStub(channel).List(health_pb2.HealthListRequest(), timeout=5)
    assert {name: one.status for name, one in listed.statuses.items()} == dict.fromkeys(("", *app.SERVICES), SERVING)


@pytest.mark.usefixtures("watchful")
def test_a_server_without_an_index_is_not_healthy_until_one_appears(tmp_path: Path) -> None:
    """And answers as soon as there is one, without a restart."""
    with serving(Store(tmp_path / "store")) as served:
        assert _health(served.target) == NOT_SERVING
        gallery = make_gallery(tmp_path / "store", count=3)
        until(lambda: _health(served.target) == SERVING)
        with grpc.insecure_channel(served.target) as channel:
            stub = stub_of(channel)
            assert stub.Search(SearchRequest(image=photo(1))).hits[0].item == gallery.items[1]


@pytest.mark.usefixtures("watchful")
def test_a_newly_activated_version_is_served_without_a_failed_request(tmp_path: Path) -> None:
    """Searches go on through the swap, and each is answered by one version or the other."""
    gallery = make_gallery(tmp_path / "store", count=6)
    versions: list[int] = []
    with serving(gallery.store) as served, grpc.insecure_channel(served.target) as channel:
        stub = stub_of(channel)

        def version() -> int:
            versions.append(stub.Search(SearchRequest(item=gallery.items[0])).version)
            return versions[-1]

        assert version() == 1
        make_version(gallery.store, "photos", 2, gallery.model, gallery.items, gallery.embeddings)
        until(lambda: version() == 2)
    assert versions == sorted(versions)


def test_a_taken_port_is_an_error_that_names_it(served: Served, gallery: Gallery) -> None:
    """Two servers never share a port by accident."""
    with pytest.raises(app.CannotListen, match=f"can't listen on {served.target}: it is taken"):
        app.run(gallery.store, listen=served.target, index=None, ready=lambda _: pytest.fail("it listens"))


@pytest.mark.parametrize(
    ("listen", "message"),
    [
        ("nosuchhost.invalid:50051", "no host is known as 'nosuchhost.invalid'; use an address of this machine"),
        ("192.0.2.1:50051", "it is not an address of this machine"),
        ("127.0.0.1:http-alt", "'http-alt' is no port; write HOST:PORT"),
        ("nonsense", "'nonsense' is no port; write HOST:PORT"),
        ("127.0.0.1:http", "'http' is no port; write HOST:PORT"),
        ("127.0.0.1:-1", "'-1' is no port; write HOST:PORT"),
        ("127.0.0.1:+70000", "'+70000' is no port; write HOST:PORT"),
        ("127.0.0.1:", "'' is no port; write HOST:PORT"),
        ("50051", "'50051' is no port; write HOST:PORT"),
        ("127.0.0.1:70000", "a port is 1 to 65535, or 0 for a free one"),
        ("a..b:50051", "no host is known as 'a..b'; use an address of this machine"),
        ("::1:0", "an IPv6 address stands in brackets, such as [::1]:0"),
    ],
)
def test_an_address_that_cannot_be_listened_on_says_why(listen: str, message: str, tmp_path: Path) -> None:
    """An unknown host, another machine's address and a malformed one are told apart from a taken port."""
    with pytest.raises(app.CannotListen, match=re.escape(f"can't listen on {listen}: {message}")):
        asyncio.run(app.start(Store(tmp_path), listen=listen))


def test_a_port_of_the_system_says_who_may_listen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the right to bind a port below 1024, the remedy is named; root may, so bind is replaced."""

    def refuse(_: socket.socket, address: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(socket.socket, "bind", refuse)
    assert app.why_not("127.0.0.1:80") == "this user may not listen there; use a port from 1024 on"


def test_a_port_beyond_the_last_is_refused(gallery: Gallery) -> None:
    """It is not cut down to another port, as gRPC would."""
    with pytest.raises(app.CannotListen, match="a port is 1 to 65535"), serving(gallery.store, port=99_999):
        pass


def test_listening_beyond_this_machine_warns(gallery: Gallery, caplog: pytest.LogCaptureFixture) -> None:
    """There is no authentication yet, and whoever opens the door is told."""
    for listen, warned in (("127.0.0.1:1", 0), ("localhost:1", 0), ("[::1]:1", 0), ("0.0.0.0:1", 1), ("[::]:1", 1)):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            app._warn_if_open(listen)
        assert (listen, warned) == (listen, len(caplog.records))


def test_a_store_that_does_not_exist_is_made(tmp_path: Path) -> None:
    """So that a server can be there before what it is to serve."""
    store = Store(tmp_path / "new" / "store")
    with server_process(store) as (process, target):
        assert not target.endswith(":"), process.stderr and process.stderr.read()
    assert store.root.is_dir()


@pytest.mark.parametrize(("index", "told"), [("brids", "has no index brids to search yet"), ("photos", "")])
def test_an_index_that_is_not_there_is_told_of(
    index: str, told: str, gallery: Gallery, caplog: pytest.LogCaptureFixture
) -> None:
    """It may be built later, or be a slip of the pen."""
    with caplog.at_level(logging.WARNING), serving(gallery.store, index=index):
        pass
    assert told in caplog.text
    assert bool(told) == bool(caplog.records)


def test_the_server_runs_without_torch_in_little_memory(gallery: Gallery) -> None:
    """Training's libraries are not needed to serve."""
    with server_process(gallery.store) as (process, target):
        assert _health(target) == SERVING
        maps = Path(f"/proc/{process.pid}/maps").read_text()
        status = Path(f"/proc/{process.pid}/status").read_text()
    assert "torch" not in maps
    resident_kib = int(status.split("VmRSS:")[1].split()[0])
    assert resident_kib < 400 * 1024


def test_a_store_on_a_read_only_disk_is_served(small_disk: Path) -> None:
    """What was upserted before is found there, and a new upsert is refused with the reason."""
    store = build_photos(small_disk)
    with server_process(store) as (process, target), Stubs(target) as client:
        client.upsert(ItemUpsert(item="new", image=photo(1000)))
        process.terminate()
        assert process.wait(30) == 0
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with server_process(store) as (_, target), Stubs(target) as client:
        assert client.found(image=photo(1000))[0] == "new"
        with pytest.raises(grpc.RpcError) as refused:
            client.upsert(ItemUpsert(item="newer", image=photo(1001)))
        assert "catalog.sqlite can't be written" in str(refused.value.details())


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_lets_requests_in_progress_finish_and_refuses_new_ones(number: int, gallery: Gallery) -> None:
    """Under load: what the server has begun is answered, what comes later gets UNAVAILABLE, and it exits with 0."""
    calls, begun = list[Call](), dict[int, float]()
    slow = SearchRequest(image=photo(1, side=5000))  # 25 megapixels take far longer than a signal
    with server_process(gallery.store) as (process, target):
        arguments = (target, slow, calls, begun)
        threads = [threading.Thread(target=_search_until_refused, args=arguments) for _ in range(4)]
        for thread in threads:
            thread.start()
        while not (calls and min(begun.values()) < time.monotonic() - ON_ITS_WAY_S):
            time.sleep(0.01)
        signalled = time.monotonic()
        process.send_signal(number)
        for thread in threads:
            thread.join(40)
        assert process.wait(40) == 0
    # One that the server itself refused had not reached it before, however long it was on its way on a busy machine.
    refusal = "the server is shutting down"
    begun_before = [c for c in calls if c.began < signalled - ON_ITS_WAY_S and not c.told.startswith(refusal)]
    assert any(call.ended > signalled for call in begun_before)
    assert [call for call in begun_before if call.code is not None] == []
    assert [call.code for call in calls if call.code is not None] == [grpc.StatusCode.UNAVAILABLE] * 4


ON_ITS_WAY_S = 0.4  # a request that began so short ago may find the door closed


class Call(NamedTuple):
    began: float
    ended: float
    code: grpc.StatusCode | None
    told: str


def _search_until_refused(target: str, request: SearchRequest, calls: list[Call], begun: dict[int, float]) -> None:
    code, told = None, ""
    with grpc.insecure_channel(target, [("grpc.enable_retries", 0)]) as channel:
        stub = stub_of(channel)
        while code is None:
            began = begun[threading.get_ident()] = time.monotonic()
            try:
                stub.Search(request, timeout=30)
            except grpc.RpcError as error:
                code, told = error.code(), str(error.details())
            calls.append(Call(began, time.monotonic(), code, told))


def test_every_method_that_reflection_lists_is_described_and_answered(tmp_path: Path) -> None:
    """Tools show all of them at once, and end at the first that they are refused; here the store has nothing yet."""
    with serving(Store(tmp_path / "store")) as served, grpc.insecure_channel(served.target) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        services = [DescriptorPool(database).FindServiceByName(name) for name in database.get_services()]
        codes = {
            f"{service.full_name}/{method.name}": _code_of_nothing(channel, f"/{service.full_name}/{method.name}")
            for service in services
            for method in service.methods
        }
    assert {"grpc.reflection.v1.ServerReflection/ServerReflectionInfo", "grpc.health.v1.Health/List"} < codes.keys()
    assert {*codes.values()} & {StatusCode.UNIMPLEMENTED, StatusCode.INTERNAL, StatusCode.UNKNOWN} == set(), codes


def _code_of_nothing(channel: grpc.Channel, method: str) -> grpc.StatusCode:
    """How a method answers an empty request; those that stream take and give one message on the wire, too."""
    of_bytes: Any = channel.unary_stream(method)  # its types are those of messages that it would make
    call = of_bytes(b"", timeout=1)
    with contextlib.suppress(grpc.RpcError):
        next(call, None)
        call.cancel()
    code: grpc.StatusCode = call.code()
    return code


@pytest.mark.skipif(not BUF.exists(), reason="buf is not installed; pip install buf-bin")
@pytest.mark.parametrize(
    ("method", "request_json", "expected"),
    [
        ("grpc.health.v1.Health/Check", {}, {"status": "SERVING"}),
        (
            "kinsight.v1.SearchService/Search",
            {"item": "some class/3.png", "topK": 1},
            {"hits": [{"item": "some class/3.png", "similarity": 1}], "index": "photos", "version": "1"},
        ),
    ],
)
@pytest.mark.parametrize("reflection", ["grpc-v1", "grpc-v1alpha"])
def test_buf_curl_calls_the_server_through_reflection(
    method: str,
    request_json: object,
    expected: dict[str, object],
    reflection: str,
    served: Served,
    gallery: Gallery,
    tmp_path: Path,
) -> None:
    """A client that was not written here and has no .proto of ours, by both reflection protocols."""
    command = [str(BUF), "curl", "--protocol", "grpc", "--http2-prior-knowledge", "--reflect-protocol", reflection]
    result = subprocess.run(
        [*command, "--data", json.dumps(request_json), f"http://{served.target}/{method}"],
        env={**os.environ, "BUF_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    if "hits" in found:
        assert found.pop("model") == gallery.model
        assert found["hits"][0]["similarity"] == pytest.approx(1, abs=1e-5)
        found["hits"][0]["similarity"] = 1
    assert expected == found


@pytest.mark.skipif(not BUF.exists(), reason="buf is not installed; pip install buf-bin")
@pytest.mark.parametrize("reflection", ["grpc-v1", "grpc-v1alpha"])
def test_buf_curl_lists_every_method(reflection: str, served: Served, tmp_path: Path) -> None:
    """It needs the description of each service that is listed, reflection's own too."""
    command = [str(BUF), "curl", "--protocol", "grpc", "--http2-prior-knowledge", "--reflect-protocol", reflection]
    result = subprocess.run(
        [*command, "--list-methods", f"http://{served.target}"],
        env={**os.environ, "BUF_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert (result.returncode, result.stderr) == (0, "")
    services = {method.partition("/")[0] for method in result.stdout.split()}
    assert services > {"grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection", *app.SERVICES}


def test_copied_stores_serve_alike(gallery: Gallery, tmp_path: Path) -> None:
    """A store can be moved to another place and served there."""
    shutil.copytree(gallery.store.root, tmp_path / "moved to")
    with serving(Store(tmp_path / "moved to")) as served:
        assert _health(served.target) == SERVING
