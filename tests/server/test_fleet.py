"""A server of several real processes on one port."""

import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from kinsight.v1.index_service_pb2 import (
    BuildVersionRequest,
    GetIndexRequest,
    GetIndexStatsRequest,
    RollbackIndexRequest,
)
from kinsight.v1.item_service_pb2 import BatchUpsertItemsRequest, ImportItemsRequest, ItemUpsert

from indexer.operations import find
from indexer.store import Store
from server import fleet as fleets
from server.app import CannotListen, StoreServed, sole_server
from server.folders import Folders
from server.news import Inbox, News
from tests.serving import Gallery, Served, Stubs, build_photos, photo, reason_of
from tests.waiting import PROCESS_S, until

Two = tuple[subprocess.Popen[str], str]

CONNECTIONS = 16  # that all of them reach one of two processes happens once in 30,000 times


@contextmanager
def fleet(
    store: Store,
    listen: str = "127.0.0.1:0",
    processes: int = 2,
    *options: str,
    command: Sequence[str] = ("-m", "clients.cli"),
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`kinsight serve --processes 2`, and its target; killed at the end if it still runs."""
    words = [
        "serve",
        "--store",
        str(store.root),
        "--listen",
        listen,
        "--processes",
        str(processes),
        "--json",
        *options,
    ]
    process = subprocess.Popen(
        [sys.executable, *command, *words], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    with process:
        try:
            assert process.stdout is not None
            yield process, json.loads(process.stdout.readline())["listen"]
        finally:
            process.kill()


def members(process: subprocess.Popen[str]) -> list[int]:
    """The processes of a fleet that serve, without the one that multiprocessing keeps track of memory with."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(pid) for pid in children if b"spawn_main" in _command(pid)]


def _command(pid: str) -> bytes:
    """How a process was called; nothing of one that has just ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


@contextmanager
def connected(target: str) -> Iterator[list[Stubs]]:
    """Clients that reach both of two processes, and have searched once."""
    with ExitStack() as stack:
        clients = [stack.enter_context(Stubs(target)) for _ in range(CONNECTIONS)]
        for client in clients:
            client.found(image=photo(0))
        yield clients


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Two]:
    """Two processes on an index of 24 photographs, which tests leave two, but may change the index of."""
    with fleet(build_photos(tmp_path_factory.mktemp("two"))) as (process, target):
        yield process, target


def test_what_one_process_takes_in_every_process_finds_at_once(two: Two) -> None:
    """Upserted over one connection, an item is found over all; deleted over another, over none."""
    process, target = two
    assert len(members(process)) == 2
    with connected(target) as clients:
        for number, client in enumerate(clients[:4]):
            image = photo(1000 + number)
            results = client.upsert(ItemUpsert(item=f"new {number}", image=image))
            assert [result.status.code for result in results] == [0]
            assert [f"new {number}"] * CONNECTIONS == [other.found(image=image)[0] for other in clients]
            clients[-1 - number].delete(f"new {number}")
            assert not any(f"new {number}" in other.found(image=image) for other in clients)


def test_what_one_process_takes_in_every_process_counts_at_once(two: Two) -> None:
    """What an index holds now is told by each as it is, not as it was when it last looked."""
    with connected(two[1]) as clients:
        before = clients[0].indexes.GetIndexStats(GetIndexStatsRequest())
        for number, client in enumerate(clients[:4]):
            client.upsert(ItemUpsert(item=f"counted {number}", image=photo(2000 + number)))
            expected = before.items + number + 1
            stats = [other.indexes.GetIndexStats(GetIndexStatsRequest()) for other in clients]
            changed = before.delta_items + 2 * number + 1
            assert {(one.items, one.delta_items) for one in stats} == {(expected, changed)}
            client.upsert(ItemUpsert(item=f"counted {number}", image=photo(3000 + number)))
            assert {other.indexes.GetIndex(GetIndexRequest()).items for other in clients} == {expected}
            client.delete(f"00{number}.png")
            assert {other.indexes.GetIndex(GetIndexRequest()).items for other in clients} == {expected - 1}
            client.upsert(ItemUpsert(item=f"00{number}.png", image=photo(number)))


def test_of_those_who_decide_on_one_etag_one_is_heard(two: Two) -> None:
    """Whichever processes they reach: a second rollback would undo the first."""
    with connected(two[1]) as clients:
        clients[0].ended(clients[0].indexes.BuildVersion(BuildVersionRequest()))
        for _ in range(5):
            request = RollbackIndexRequest(etag=clients[0].indexes.GetIndex(GetIndexRequest()).etag)
            decided = [client.indexes.RollbackIndex.future(request, timeout=60) for client in clients]
            errors = [one.exception() for one in decided]
            assert sum(error is None for error in errors) == 1
            assert {reason_of(error) for error in errors if error} == {("ABORTED", "STALE_ETAG")}


def test_a_process_that_dies_is_replaced_and_loses_nothing(two: Two) -> None:
    """After SIGKILL of one process there are two again, and what was acknowledged is found by both."""
    process, target = two
    with Stubs(target) as client:
        client.upsert(ItemUpsert(item="kept", image=photo(4000)))
    killed = members(process)[0]
    os.kill(killed, signal.SIGKILL)
    until(lambda: killed not in members(process) and len(members(process)) == 2, PROCESS_S)
    until(lambda: answers(target), PROCESS_S)
    with connected(target) as clients:
        assert [client.found(image=photo(4000))[0] for client in clients] == ["kept"] * CONNECTIONS


def answers(target: str) -> bool:
    """Whether a new connection is answered."""
    with Stubs(target) as client:
        try:
            return bool(client.found(image=photo(0)))
        except grpc.RpcError:
            return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_no_process_outlives_its_server(gallery: Gallery, number: signal.Signals) -> None:
    """SIGTERM drains all and ends well; where the first process is killed, the others end too."""
    with fleet(gallery.store) as (process, target):
        assert answers(target)
        serving = members(process)
        process.send_signal(number)
        assert process.wait(30) == (0 if number == signal.SIGTERM else -signal.SIGKILL)
        until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in serving))


@pytest.mark.parametrize(
    ("number", "processes"),
    [
        (signal.SIGINT, 1),
        (signal.SIGTERM, 2),
        pytest.param(signal.SIGTERM, 1, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, 2, marks=pytest.mark.slow),
    ],
)
def test_the_end_of_all_processes_at_once_leaves_long_work_to_the_next_server(
    number: signal.Signals, processes: int, tmp_path: Path
) -> None:
    """Ctrl-C in a terminal, and SIGTERM from what stops a service, reach the processes of operations too."""
    store = build_photos(tmp_path)
    (tmp_path / "more").mkdir()
    image = photo(100)
    for copy in range(2000):  # photographs of other bytes
        (tmp_path / "more" / f"{copy}.png").write_bytes(image + b"%d" % copy)
    with fleet(store, "127.0.0.1:0", processes, "--allow-read", str(tmp_path)) as (process, target):
        with Stubs(target) as client:
            started = client.items.ImportItems(ImportItemsRequest(path=str(tmp_path / "more")))
        identity = started.name.removeprefix("operations/")
        until(lambda: find(store.operations, identity).state == "running", PROCESS_S)
        os.killpg(process.pid, number)
        assert process.wait(30) == 0
    assert find(store.operations, identity).state == "interrupted"


def test_a_fleet_of_which_all_are_told_to_end_answers_what_it_took(tmp_path: Path) -> None:
    """Each process drains, though SIGTERM came to it too, and not to the first one alone."""
    store = build_photos(tmp_path)
    items = [ItemUpsert(item=f"new {number}", image=photo(1000 + number)) for number in range(300)]
    with fleet(store) as (process, target), Stubs(target) as client:
        client.found(image=photo(0))
        answer = client.items.BatchUpsertItems.future(BatchUpsertItemsRequest(items=items), timeout=60)
        time.sleep(0.2)
        os.killpg(process.pid, signal.SIGTERM)
        assert [result.status.code for result in answer.result().results] == [0] * 300
        assert process.wait(30) == 0


def test_modules_in_the_folder_are_not_taken_for_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though multiprocessing begins its processes with -c, which looks there; the installed command is a script."""
    (tmp_path / "bin").mkdir()
    script = tmp_path / "bin" / "command.py"
    script.write_text("from clients.cli import main\nif __name__ == '__main__':\n    main()\n")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "socket.py").write_text("raise RuntimeError('not ours')\n")
    monkeypatch.chdir(tmp_path / "folder")
    with fleet(build_photos(tmp_path), command=[str(script)]) as (_, target), Stubs(target) as stubs:
        assert stubs.found(image=photo(0))[0] == "000.png"


def test_a_port_or_store_that_is_taken_is_refused(served: Served, tmp_path: Path) -> None:
    """A fleet neither shares the port of another server nor serves a store beside it."""
    with pytest.raises(CannotListen, match=f"can't listen on {served.target}: it is taken"):
        run_fleet(tmp_path, served.target)
    with (
        sole_server(Store(tmp_path)),
        pytest.raises(StoreServed, match=f"process {os.getpid()} serves {tmp_path} already"),
    ):
        run_fleet(tmp_path, "127.0.0.1:0")


@pytest.mark.parametrize(
    ("listen", "message"),
    [
        ("nosuchhost.invalid:50051", "no host is known as 'nosuchhost.invalid'; use an address of this machine"),
        ("a..b:50051", "no host is known as 'a..b'; use an address of this machine"),
        ("192.0.2.1:50051", "it is not an address of this machine; use one that is, 0.0.0.0 for all of them"),
        ("127.0.0.1:http-alt", "'http-alt' is no port; write HOST:PORT"),
        ("nonsense", "'nonsense' is no port; write HOST:PORT"),
        ("127.0.0.1:-1", "'-1' is no port; write HOST:PORT"),
        ("127.0.0.1:99999", "a port is 1 to 65535, or 0 for a free one"),
        ("::1:0", "an IPv6 address stands in brackets, such as [::1]:0"),
    ],
)
def test_an_address_that_no_process_can_listen_on_says_why(listen: str, message: str, tmp_path: Path) -> None:
    """A fleet tells apart what a server of one process does, before it starts any."""
    with pytest.raises(CannotListen, match=re.escape(f"can't listen on {listen}: {message}")):
        run_fleet(tmp_path, listen)


def test_a_port_that_another_program_listens_on_says_so(tmp_path: Path) -> None:
    """The remedy is named for a port that is not a server's of ours either."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        listen = f"127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(CannotListen, match=f"can't listen on {listen}: it is taken; end what listens there"):
            run_fleet(tmp_path, listen)


def run_fleet(root: Path, listen: str) -> None:
    """A fleet in this process, which must not come so far as to be ready."""
    fleets.run(
        Store(root),
        listen=listen,
        index=None,
        ready=lambda _: pytest.fail("it listens"),
        folders=Folders(),
        processes=2,
    )


@pytest.mark.parametrize(
    ("number", "why"), [(signal.SIGKILL, "use fewer --processes"), (signal.SIGTERM, "see its message above")]
)
def test_a_process_that_is_killed_before_it_answers_says_why(number: int, why: str) -> None:
    """Where memory runs out, there is no message above to see."""
    share = fleets.Share(Store(Path()), "127.0.0.1:1", None, Folders(), None, 0, resumes=False)
    process = fleets._SPAWN.Process(target=signal.raise_signal, args=(number,))
    process.start()
    ours, theirs = fleets._SPAWN.Pipe()
    theirs.close()
    with ours, pytest.raises(fleets.ProcessFailed, match=f"exit code -{number} before it could answer; .*{why}"):
        fleets._await_ready(fleets._Member(share, process, ours))


class Slow(list[int]):
    """Counters of which each is read for so long that another thread comes in between."""

    def __getitem__(self, place: Any) -> Any:
        found = super().__getitem__(place)
        time.sleep(0.001)
        return found


def test_no_word_of_two_threads_of_a_process_is_lost() -> None:
    """One writes items, the other embeds what a version that was swapped in lacks: a counter never goes back."""
    news = News(Slow([0, 0]), 0)
    with ThreadPoolExecutor(2) as pool:
        assert [*pool.map(lambda _: news.tell(), range(10))] == [None] * 10
    assert news.latest() == (10, 0)


def test_news_are_taken_in_once_and_again_after_each_word() -> None:
    """An inbox reads at first, after another process told something, and where taking in failed; not otherwise."""
    counters = [0, 0]
    mine, theirs = News(counters, 0), News(counters, 1)
    inbox, taken = Inbox(mine), list[int]()
    for expected in (1, 1):
        inbox.read(lambda: taken.append(1))
        assert expected == len(taken)
    theirs.tell()
    with pytest.raises(ZeroDivisionError):
        inbox.read(lambda: 1 // 0)
    inbox.read(lambda: taken.append(1))
    inbox.read(lambda: taken.append(1))
    assert len(taken) == 2
    assert mine.latest() == (0, 1)


def test_a_process_that_can_not_be_replaced_yet_is_later(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Where memory or processes are short for a moment; the others, which could answer, were ended."""
    share = fleets.Share(Store(tmp_path), "127.0.0.1:0", None, Folders(), None, 0, resumes=False)
    member = fleets._start(share)
    member.process.kill()
    member.process.join()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        assert fleets._replaced(member) is member
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert "can't be started again yet: [Errno 24] Too many open files" in caplog.messages[-1]
    again = fleets._replaced(member)
    assert again.process.is_alive()
    again.process.kill()
    again.process.join()
    again.tether.close()
