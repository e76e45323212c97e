"""`kinsight items`, `kinsight remote` and the choices of `kinsight search`, against a real server."""

import json
import os
import re
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
from click.testing import CliRunner, Result
from kinsight.v1.index_service_pb2 import ActivateVersionRequest, Index, RollbackIndexRequest
from kinsight.v1.index_service_pb2_grpc import IndexServiceServicer, add_IndexServiceServicer_to_server
from kinsight_client import Client

from clients.cli.command import kinsight
from clients.cli.output import printable
from indexer import import_report
from indexer.tables import read_table
from server.folders import Folders
from tests.serving import build_photos, photo, serving
from tests.waiting import until

Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """Runs the command against a server on an index of 40 photographs; `tmp_path` may be read and written."""
    folders = Folders((tmp_path,), (tmp_path,))
    with serving(build_photos(tmp_path, 40), folders=folders) as served:

        def invoke(*words: object) -> Result:
            return CliRunner().invoke(kinsight, [*map(str, words), "--server", served.target])

        yield invoke


@pytest.fixture
def new(tmp_path: Path) -> Path:
    """A folder of 6 new photographs and a file that is none."""
    folder = tmp_path / "new"
    folder.mkdir()
    for seed in range(100, 106):
        (folder / f"{seed}.png").write_bytes(photo(seed))
    (folder / "bad.png").write_text("x")
    return folder


def keys_of(*verb: str) -> set[str]:
    """The words of a verb's help after `JSON keys`."""
    return set(re.findall(r"\w+", CliRunner().invoke(kinsight, [*verb, "--help"]).stdout.partition("JSON keys")[2]))


def found(result: Result, *verb: str) -> Any:
    """The JSON object of a verb that succeeded, its keys documented."""
    assert result.exit_code == 0, result.stderr
    answer = json.loads(result.stdout)
    assert answer.keys() - keys_of(*verb) == set()
    return answer


def test_items_are_upserted_listed_searched_and_deleted(run: Run, new: Path) -> None:
    """From files, with a payload for all of them, found by conditions on it."""
    images = sorted(new.glob("1*.png"))
    done = found(run("items", "upsert", "photos", *images, "--payload", '{"new": 1}', "--json"), "items", "upsert")
    assert done == {"index": "photos", "upserted": 6, "errors": []}
    listed = run("items", "list", "photos", "--filter", "new = 1", "--limit", 4, "--json")
    answer = found(listed, "items", "list")
    assert ([one["item"] for one in answer["items"]], answer["more"]) == (
        [path.as_posix() for path in images[:4]],
        True,
    )
    assert answer["items"][0].keys() - keys_of("items", "list") == set()
    assert "the first 4" in listed.stderr

    searched = run("search", images[0], "--filter", "new = 1", "--payload", "--top-k", 40, "--json")
    hits = found(searched, "search")["hits"]
    assert len(hits) == 6
    assert (hits[0]["item"], hits[0]["payload"]) == (images[0].as_posix(), {"new": 1})
    assert "{'new': 1}" not in run("search", images[0], "--payload").stdout
    assert '{"new": 1}' in run("search", images[0], "--payload").stdout

    done = found(run("items", "delete", "photos", images[0].as_posix(), "000.png", "--json"), "items", "delete")
    assert (done["deleted"], done["errors"]) == (2, [])
    assert "ITEM_NOT_FOUND" in run("items", "get", "photos", "000.png").stderr
    kept = found(run("items", "get", "photos", images[1].as_posix(), "--json"), "items", "get")
    assert (kept["payload"], kept["searchable"]) == ({"new": 1}, True)


def test_lines_may_begin_with_a_byte_order_mark(run: Run, new: Path, tmp_path: Path) -> None:
    """As Windows writes them, with its ends of lines."""
    file = tmp_path / "items.jsonl"
    line = json.dumps({"item": "marked", "image": str(new / "100.png")})
    file.write_bytes(f"{line}\r\n".encode("utf-8-sig"))
    done = found(run("items", "upsert", "photos", "--lines", file, "--json"), "items", "upsert")
    assert (done["upserted"], done["errors"]) == (1, [])


def test_lines_may_come_through_a_pipe(run: Run, new: Path) -> None:
    """As from `--lines <(jq …)`: what is read of one can't be read again, so they are not counted first."""
    reading, writing = os.pipe()
    with os.fdopen(reading), os.fdopen(writing, "w") as file:
        file.write(json.dumps({"item": "piped", "image": str(new / "100.png")}))
        file.close()
        done = found(run("items", "upsert", "photos", "--lines", f"/dev/fd/{reading}", "--json"), "items", "upsert")
    assert (done["upserted"], done["errors"]) == (1, [])


def test_a_server_that_goes_leaves_word_how_far_the_lines_came(tmp_path: Path) -> None:
    """And of what was not taken until then: of a million lines, nobody could go on after those."""
    reading, writing = os.pipe()
    with ExitStack() as server, os.fdopen(reading):
        target = server.enter_context(serving(build_photos(tmp_path))).target

        def feed() -> None:
            with os.fdopen(writing, "w") as file, Client(target) as client:
                file.write(json.dumps({"item": "000.png", "payload": {"n": 1}}) + "\n" + '{"item": 5}\n' * 999)
                file.flush()
                until(lambda: client.items.get("000.png").payload == {"n": 1})
                server.close()
                file.write(json.dumps({"item": "001.png", "payload": {"n": 2}}) + "\n")

        words = ["items", "upsert", "photos", "--lines", f"/dev/fd/{reading}", "--server", target]
        with futures.ThreadPoolExecutor(1) as feeder:
            fed = feeder.submit(feed)
            result = CliRunner().invoke(kinsight, words)
            fed.result()
    assert result.exit_code == 1
    assert f"error: /dev/fd/{reading}, line 1000: is not an object" in result.stderr
    assert f"taken so far: 1 items, up to /dev/fd/{reading}, line 1000; go on after that\n" in result.stderr
    assert "UNAVAILABLE" in result.stderr


def test_an_empty_item_id_is_refused(run: Run, new: Path) -> None:
    """A script's unset variable does not become the path's id in silence."""
    result = run("items", "upsert", "photos", new / "100.png", "--item", "", "--json")
    assert result.exit_code == 1
    assert "item id '' has 0 bytes; it must have 1 to 1,024" in result.stderr


def test_lines_that_can_not_be_taken_are_named_and_the_others_are(run: Run, new: Path, tmp_path: Path) -> None:
    """Each with its reason, on stderr and as JSON; the exit code is 1."""
    image = str(new / "100.png")
    lines = [
        {"item": "good", "image": image, "payload": {"year": 2020}},
        {"item": "gone", "image": str(new / "none.png")},
        {"item": "no name", "image": "a\0b"},
        {"item": "text", "image": str(new / "bad.png")},
        {"item": "digits", "image": image, "payload": {"n": 2**53 + 1}},
        {"item": "field", "picture": image},
        {"item": "half", "embedding": [1.0]},
        {"item": "other", "embedding": [1.0], "model": "other"},
        {"image": image},
        {"item": "number", "embedding": [1.0], "model": 5},
        {"item": "rows", "embedding": [[1.0]], "model": "other"},
        {"item": "ragged", "embedding": [[1.0], 2.0], "model": "other"},
        {"item": "null", "embedding": None, "model": None},
        {"item": "list", "image": image, "payload": [1]},
        {"item": "half \ud800", "image": image},
        {"item": "half a text", "image": image, "payload": {"x": ["\ud800"]}},
        {"item": "nobody", "payload": {}},
        {"item": "good", "payload": {"year": 2021}},
    ]
    file = tmp_path / "items.jsonl"
    text = "".join(json.dumps(line) + "\n" for line in lines) + "{\n" + "[" * 100_000 + "\n"
    file.write_bytes(b'{"item": "caf\xe9"}\n' + text.encode())
    result = run("items", "upsert", "photos", "--lines", file, "--json")
    answer = json.loads(result.stdout)
    assert (result.exit_code, answer["upserted"]) == (1, 2)
    said = {error["item"]: error["error"] for error in answer["errors"]}
    expected = {
        "gone": "No such file",
        "no name": "null byte",
        "text": "IMAGE_DECODE_FAILED",
        "digits": "beyond 2^53",
        "field": "unknown field 'picture'",
        "half": "the model that made it",
        "other": "MODEL_MISMATCH",
        f"{file}, line 1": "is not UTF-8 text",
        f"{file}, line 10": '"item"',
        "number": "has the model 5; it must be a text",
        "rows": "the shape (1, 1); it must be one list of numbers",
        "ragged": "inhomogeneous",
        "null": "has the model None",
        "list": "payload",
        "half \ud800": "the id of item 'half \\ud800' has half of a surrogate pair",
        "half a text": "'\\ud800' in the payload of item 'half a text' has half",
        "nobody": "ITEM_NOT_FOUND",
        f"{file}, line 20": "line 1 column 2",
        f"{file}, line 21": "nested too deeply",
    }
    assert said.keys() == expected.keys()
    assert [item for item, reason in expected.items() if reason not in said[item]] == []
    assert all(f"error: {printable(item)}: " in result.stderr for item in expected)
    assert json.loads(run("items", "get", "photos", "good", "--json").stdout)["payload"] == {"year": 2021}


def test_hits_can_be_grouped_thinned_and_bounded(run: Run, new: Path) -> None:
    """Each option of the search arrives at the server, and a wrong condition is told with its column."""
    for number, path in enumerate(sorted(new.glob("1*.png"))):
        run("items", "upsert", "photos", path, "--item", f"n{number}", "--payload", json.dumps({"kind": number % 2}))
    run("items", "upsert", "photos", new / "100.png", "--item", "copy")

    def items(*options: object) -> list[str]:
        answer = found(run("search", new / "100.png", "--top-k", 60, "--json", *options), "search")
        return [hit["item"] for hit in answer["hits"]]

    assert len(items("--filter", "kind:*", "--group-by", "kind")) == 2
    assert {*items("--min-similarity", 0.999)} == {"n0", "copy"}
    assert len({"n0", "copy"} & {*items("--near-duplicates", 0.999)}) == 1
    assert items() == items("--target-recall", 0.9)
    assert items() != items("--diversity", 0.9)
    assert "column 6" in run("search", "item:n0", "--filter", "kind ~ 1").stderr
    assert "no item matches" in run("search", "item:n0", "--filter", "kind = 7").stdout
    one_of_two = run("search", "item:n0", "item:n1", "--filter", "kind = 0", "--min-similarity", 0.999).stdout
    assert (" n0 " in one_of_two, "item:n1: no item matches" in one_of_two) == (True, True)
    told = run("search", "item:n0", "--filter", "kind = '7'")
    assert (told.exit_code, told.stdout) == (1, "")
    assert "column 8: '7' is a text, and kind holds only numbers; write 7 without quotes" in told.stderr


@pytest.mark.parametrize("group", ["items", "remote"])
def test_every_verb_has_help_that_documents_its_json(group: str) -> None:
    """With the option that names the server."""
    verbs = kinsight.commands[group].commands  # type: ignore[attr-defined]
    assert len(verbs) >= 6
    for verb in verbs:
        text = CliRunner().invoke(kinsight, [group, verb, "--help"]).stdout
        assert "JSON keys" in text
        assert "--server" in text


@pytest.mark.parametrize(
    "words",
    [
        ["items", "upsert", "photos"],
        ["items", "upsert", "photos", "a.png", "b.png", "--item", "c"],
        ["items", "upsert", "photos", "a.png", "--payload", "{"],
        ["items", "upsert", "photos", "a.png", "--payload", "[1]"],
        ["items", "upsert", "photos", "a.png", "--payload", "null"],
        ["items", "delete", "photos"],
        ["items", "list", "photos", "--limit", "0"],
        ["remote", "rebuild", "photos", "--model", "m", "--learn"],
        ["search", "a.png", "--diversity", "2"],
    ],
    ids=" ".join,
)
def test_a_wrong_call_exits_with_2(words: list[str]) -> None:
    """Before a server is asked."""
    result = CliRunner().invoke(kinsight, words)
    assert (result.exit_code, result.stdout) == (2, "")


def test_a_server_imports_rebuilds_rolls_back_and_exports(run: Run, new: Path, tmp_path: Path) -> None:
    """The whole life of an index from the command, each answer with its documented keys."""
    imported = found(run("items", "import", "photos", new, "--json"), "items", "import")
    assert (imported["imported"], imported["failed"], imported["failures"][0]["item"]) == (6, 1, "bad.png")
    exported = found(run("items", "export", "photos", tmp_path / "all.parquet", "--json"), "items", "export")
    assert (exported["items"], Path(exported["path"]).stat().st_size) == (46, exported["bytes"])
    nowhere = run("items", "export", "photos", tmp_path / "nowhere" / "all.parquet")
    assert f"there is no folder {tmp_path / 'nowhere'}" in nowhere.stderr

    built = found(run("remote", "rebuild", "photos", "--json"), "remote", "rebuild")
    assert (built["version"]["version"], built["version"]["state"], built["version"]["items"]) == (2, "active", 46)
    listed = found(run("remote", "versions", "photos", "--json"), "remote", "versions")
    assert [(one["version"], one["state"]) for one in listed["versions"]] == [(2, "active"), (1, "ready")]
    back = found(run("remote", "rollback", "photos", "--json"), "remote", "rollback")
    assert (back["active_version"], back["items"]) == (1, 46)
    assert "version 2 is active" in run("remote", "activate", "photos", 2).stdout
    stats = found(run("remote", "stats", "photos", "--json"), "remote", "stats")
    assert (stats["version"], stats["items"]) == (2, 46)

    listed = found(run("remote", "operations", "--filter", "done = true", "--json"), "remote", "operations")
    assert [(one["kind"], one["state"]) for one in listed["operations"]] == [
        ("import", "succeeded"),
        ("export", "succeeded"),
        ("export", "failed"),
        ("build", "succeeded"),
    ]
    told = found(run("remote", "wait", listed["operations"][3]["id"], "--json"), "remote", "wait")
    assert told["result"]["version"]["version"] == 2
    assert "OPERATION" in run("remote", "cancel", "nosuch").stderr


def test_an_import_lists_every_image_that_is_left_out(
    run: Run, new: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a table of their own, however few of them the report has; a server overwrites nothing."""
    monkeypatch.setattr(import_report, "MAX_FAILURES", 1)
    for number in range(30):
        (new / f"empty {number}.png").touch()
    table = tmp_path / "failures.csv"
    words = ["items", "import", "photos", str(new), "--failures", str(table)]
    done = CliRunner().invoke(kinsight, [*words, "--store", str(tmp_path / "store")])
    assert done.exit_code == 0, done.stderr
    assert f"skipped 30 more; {table} lists them all" in done.stderr
    assert len(read_table(table, ["item", "reason"])["item"]) == 31
    assert f"{table} is there already" in run(*words).stderr
    table.rename(tmp_path / "earlier.csv")
    assert f"skipped 11 more; {table} lists them all" in run(*words).stderr
    assert table.read_text() == (tmp_path / "earlier.csv").read_text()
    elsewhere = tmp_path.with_name("elsewhere.csv")
    assert f"{elsewhere} is in no folder" in run(*words[:-1], str(elsewhere)).stderr


def test_a_rebuild_that_is_refused_exits_with_1_and_says_why(run: Run, tmp_path: Path) -> None:
    """The version is kept, and the active one is searched on."""
    for path in sorted((tmp_path / "images").iterdir())[:20]:
        path.write_text("not an image any more")
    result = run("remote", "rebuild", "photos", "--images", tmp_path / "images", "--json")
    built = json.loads(result.stdout)
    assert (result.exit_code, built["version"]["state"]) == (1, "refused")
    assert f"not activated: {built['version']['refusal']}" in result.stderr
    assert json.loads(run("remote", "list", "--json").stdout)["indexes"][0]["active_version"] == 1


def test_what_keeps_a_version_from_being_served_is_told_where_indexes_are_listed(tmp_path: Path) -> None:
    """On stderr, beside the table."""
    store = build_photos(tmp_path)
    rows = store.index("photos") / "versions" / "1" / "rows.faiss"
    rows.write_bytes(b"")
    with serving(store) as served:
        listed = CliRunner().invoke(kinsight, ["remote", "list", "--server", served.target])
    assert (listed.exit_code, "photos" in listed.stdout) == (0, True)
    assert f"warning: index photos: {rows} has " in listed.stderr


class Slow(IndexServiceServicer):
    """A server that says how long it would have had to activate a version."""

    def ActivateVersion(self, request: ActivateVersionRequest, context: grpc.ServicerContext) -> Index:  # noqa: N802
        """At once, in the place of the items the seconds that were left."""
        return Index(index=request.index, active_version=2, items=int(context.time_remaining() or 0))

    def RollbackIndex(self, request: RollbackIndexRequest, context: grpc.ServicerContext) -> Index:  # noqa: N802
        """The same."""
        return Index(index=request.index, active_version=1, items=int(context.time_remaining() or 0))


@pytest.mark.parametrize("words", [["activate", "photos", "2"], ["rollback", "photos"]], ids=lambda words: words[0])
def test_a_large_version_may_take_its_time_to_be_verified(words: list[str]) -> None:
    """Every byte of it is read before it is searched, which a call's ten seconds need not be enough for."""
    server = grpc.server(futures.ThreadPoolExecutor(1))
    add_IndexServiceServicer_to_server(Slow(), server)  # type: ignore[no-untyped-call]
    target = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        result = CliRunner().invoke(kinsight, ["remote", *words, "--server", target, "--json"])
    finally:
        server.stop(None).wait()
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["items"] > 3000
