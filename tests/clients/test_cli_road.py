"""The whole road through the command: train, evaluate, index, serve and search, with real parts."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from clients.cli.command import kinsight
from indexer.store import Store
from tests.trainer import network

SMALL = [
    *("--backbone", network.NAME, "--weights", "none", "--size", "32", "--dim", "16", "--epochs", "1"),
    *("--set", "run.least_steps=1"),
    *("--set", "run.batch_size=20", "--device", "cpu"),
]


@contextmanager
def serving(store: Store) -> Iterator[str]:
    """The address of `kinsight serve` in a process of its own."""
    words = ["serve", "--store", str(store.root), "--listen", "127.0.0.1:0", "--json"]
    with subprocess.Popen(
        [sys.executable, "-m", "clients.cli", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            yield json.loads(process.stdout.readline())["listen"]
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=30)
        assert process.returncode == 0


def output_of(*words: object) -> dict[str, object]:
    """The JSON object that a verb prints, and nothing else on stdout."""
    result = CliRunner().invoke(kinsight, [*map(str, words), "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert isinstance(found, dict)
    return found


def undocumented(verb: list[str], found: Mapping[str, object]) -> set[str]:
    """Keys of a verb's JSON object that its help does not name."""
    text = CliRunner().invoke(kinsight, [*verb, "--help"]).stdout.partition("JSON keys")[2]
    return set(found) - set(re.findall(r"\w+", text))


def test_the_query_is_its_own_nearest_neighbour_at_the_end_of_the_road(
    photos: Path, store: Store, tmp_path: Path
) -> None:
    """A model learned from a folder finds each indexed photo first when that photo is the query."""
    labels = tmp_path / "labels.csv"
    items = sorted(path.relative_to(photos).as_posix() for path in photos.rglob("*.*g"))
    labels.write_text("path,class_id\n" + "".join(f"{item},{item.split('/')[0]}\n" for item in items))
    place = ["--store", store.root]

    trained = output_of("train", photos, "--labels", labels, *SMALL, *place)
    judged = output_of("evaluate", trained["model"], photos, "--labels", labels, "--device", "cpu", *place)
    built = output_of("index", "build", "photos", photos, "--model", trained["model"], *place)
    with serving(store) as address:
        by_file = output_of("search", photos / items[7], photos / items[40], "--server", address, "--top-k", 3)
        by_item = output_of("search", f"item:{items[7]}", "--server", address)

    assert (built["count"], built["model"], by_file["model"]) == (60, trained["model"], trained["model"])
    assert judged["recall_at_1"] == pytest.approx(_nested(trained, "trained")["recall_at_1"])
    assert [hit["item"] for hit in _hits(by_file) if hit["rank"] == 1] == [items[7], items[40]]
    assert len(_hits(by_file)) == 6
    assert _hits(by_item)[0]["item"] == items[7]
    assert all(hit["similarity"] == pytest.approx(1, abs=1e-4) for hit in _hits(by_file) if hit["rank"] == 1)
    verbs = {"train": trained, "evaluate": judged, "index build": built, "search": by_file}
    assert {name: undocumented(name.split(), found) for name, found in verbs.items()} == {
        name: set() for name in verbs
    }


def test_a_failing_query_does_not_stop_the_others(
    photos: Path, store: Store, tmp_path: Path, tiny_model: str
) -> None:
    """Each query that can't be answered is named; the rest are answered and drawn, and the exit code is 1."""
    output_of("index", "build", "photos", photos, "--model", tiny_model, "--store", store.root)
    (tmp_path / "text.jpg").write_text("not a picture")
    queries = ["item:nosuch", tmp_path / "text.jpg", tmp_path / "absent.jpg", "item:street/04.jpg"]
    drawn = ["--grid", tmp_path / "grid.png", "--images", photos]

    with serving(store) as address:
        words = ["search", *queries, "--server", address, "--top-k", 4, *drawn, "--json"]
        result = CliRunner().invoke(kinsight, list(map(str, words)), catch_exceptions=False)

    found = json.loads(result.stdout)
    assert result.exit_code == 1
    assert [entry["query"] for entry in found["errors"]] == [str(query) for query in queries[:3]]
    assert "ITEM_NOT_FOUND" in result.stderr
    assert "IMAGE_DECODE_FAILED" in result.stderr
    assert "No such file" in result.stderr
    assert [hit["query"] for hit in found["hits"]] == ["item:street/04.jpg"] * 4
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.width > 4 * 112


@pytest.mark.usefixtures("quick_retries")
def test_searching_where_no_server_is_says_so() -> None:
    """A port that nobody listens on is one error line that names the state."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening: nobody else can take it meanwhile
        result = CliRunner().invoke(kinsight, ["search", "item:a", "--server", f"127.0.0.1:{taken.getsockname()[1]}"])

    assert result.exit_code == 1
    assert result.stderr.startswith("error: UNAVAILABLE")


def test_a_port_in_use_is_named(store: Store, tiny_model: str) -> None:
    """A second server on a port exits with 1 and names the address."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        words = ["serve", "--store", str(store.root), "--listen", address]
        command = [sys.executable, "-m", "clients.cli", *words]
        finished = subprocess.run(command, capture_output=True, timeout=60, check=False)

    assert finished.returncode == 1
    assert f"error: can't listen on {address}" in os.fsdecode(finished.stderr)
    assert b"Traceback" not in finished.stderr


def _nested(found: Mapping[str, object], key: str) -> dict[str, float]:
    inner = found[key]
    assert isinstance(inner, dict)
    return inner


def _hits(found: Mapping[str, object]) -> list[dict[str, object]]:
    hits = found["hits"]
    assert isinstance(hits, list)
    return hits
