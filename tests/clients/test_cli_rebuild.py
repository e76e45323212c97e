"""`kinsight rebuild`, `kinsight operations`, and what `kinsight index` does with versions, as users call them."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from kinsight.v1.index_service_pb2 import GetIndexRequest
from kinsight.v1.search_service_pb2 import Hit, SearchRequest

from clients.cli.command import INTERRUPTED, kinsight
from clients.cli.rebuild import result_of
from indexer import operations
from indexer.build import BuildReport
from indexer.catalog import Catalog
from indexer.priority import OOM_SCORE
from indexer.records import Upsert
from indexer.staging import sole_builder
from indexer.store import Store
from indexer.version import active_version, list_versions, open_version, version_dir
from tests.serving import Stubs, serving
from tests.waiting import PROCESS_S, until

Run = Callable[..., Result]

SMALL = [
    *("--backbone", "test_resnet", "--weights", "none", "--size", "32", "--dim", "16", "--epochs", "1"),
    *("--set", "run.least_steps=1"),
    *("--set", "run.batch_size=20", "--device", "cpu"),
]


@pytest.fixture
def run(store: Store) -> Run:
    """Runs the command in this process, on `store`."""

    def invoke(*words: object) -> Result:
        return CliRunner().invoke(kinsight, [*map(str, words), "--store", str(store.root)])

    return invoke


@pytest.fixture
def index(run: Run, photos: Path, tiny_model: str, store: Store) -> Path:
    """The directory of the index `photos`, version 1 of 60 pictures."""
    assert run("index", "build", "photos", photos, "--model", tiny_model).exit_code == 0
    return store.index("photos")


@pytest.fixture
def more(photos: Path, tmp_path: Path) -> Path:
    """A folder with 30 of the photos, and a new one."""
    folder = tmp_path / "more"
    shutil.copytree(photos / "garden", folder)
    (folder / "new.png").write_bytes((photos / "street" / "00.png").read_bytes())
    return folder


@contextmanager
def started(*words: object, in_background: bool = False) -> Iterator["subprocess.Popen[str]"]:
    """The command in a process of its own, killed at the end; in the background, a script's `&` ignores SIGINT."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN if in_background else signal.default_int_handler)
    command = [sys.executable, "-m", "clients.cli", *map(str, words)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        signal.signal(signal.SIGINT, before)
        try:
            yield process
        finally:
            process.kill()


def output_of(result: Result) -> dict[str, object]:
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert isinstance(found, dict)
    return found


def test_a_rebuild_adds_images_and_is_recorded(run: Run, index: Path, more: Path) -> None:
    """The JSON says what was reused; the operation's record holds the same, and words that call it again."""
    found = output_of(run("rebuild", "photos", "--images", more, "--json"))
    assert [found[key] for key in ("version", "count", "reused", "decoded", "activated", "refused")] == [
        *(2, 91, 91, 0),
        True,
        "",
    ]
    listed = output_of(run("operations", "list", "--json"))["operations"]
    assert isinstance(listed, list)
    assert [(one["kind"], one["state"]) for one in listed] == [("build", "done"), ("rebuild", "done")]
    shown = output_of(run("operations", "show", listed[1]["id"], "--json"))
    assert shown["result"] == found
    assert shown["arguments"][:4] == ["rebuild", "photos", "--images", str(more)]  # type: ignore[index]
    again = CliRunner().invoke(kinsight, [*shown["arguments"]])  # type: ignore[misc]
    assert output_of(again)["version"] == 3
    assert "rebuild" in run("operations", "list").stdout


def test_a_refused_candidate_exits_with_1(
    run: Run, index: Path, photos: Path, make_model: Callable[..., str], store: Store
) -> None:
    """It says why on stderr and in JSON, is listed, and can be activated, measured and rolled back by hand."""
    shutil.rmtree(photos / "garden")
    result = run("rebuild", "photos", "--model", make_model(store, seed=5), "--json")
    assert result.exit_code == 1
    assert "not activated: 30 of 60 items would be lost" in result.stderr
    assert json.loads(result.stdout)["activated"] is False
    assert "not activated: 30 of 60 items would be lost" in run("operations", "list").stdout
    assert output_of(run("index", "inspect", "photos", "--version", 2, "--json"))["refused"]
    measured = output_of(run("index", "evaluate", "photos", "--version", 2, "--json"))
    assert (measured["recall_at_10"], measured["labelled"]) == (1.0, 0)
    assert measured["comparison"]["compared"] == 30  # type: ignore[index]
    assert run("index", "activate", "photos", 2).exit_code == 0
    assert output_of(run("index", "rollback", "photos", "--json"))["version"] == 1
    assert output_of(run("index", "delete-version", "photos", 2, "--json"))["versions"] == [1]


def test_labels_measure_a_version(run: Run, index: Path, tmp_path: Path, photos: Path) -> None:
    """R@1 by a table of item ids, or of paths; what it names of the split train is left out."""
    labels = tmp_path / "labels.csv"
    items = sorted(path.relative_to(photos).as_posix() for path in photos.rglob("*.*g"))
    split = ["train" if number < 20 else "test" for number in range(60)]
    rows = [f"{item},{item[:2]},{part}\n" for item, part in zip(items, split, strict=True)]
    labels.write_text("path,class_id,split\n" + "".join(rows))
    by_item = output_of(run("index", "evaluate", "photos", "--labels", labels, "--json"))
    (photos / "labels.csv").write_text(labels.read_text().replace("garden/", f"{photos}/garden/"))
    by_path = output_of(run("index", "evaluate", "photos", "--labels", photos / "labels.csv", "--json"))
    assert by_item["labelled"] == by_path["labelled"] == 40
    assert by_item["recall_at_1"] == by_path["recall_at_1"] == pytest.approx(_recall_at_1(index, items[20:]))
    assert "recall_at_1" in run("index", "evaluate", "photos", "--labels", labels).stdout


def _recall_at_1(index: Path, items: Sequence[str]) -> float:
    """How many of these items have another one of their folder nearest among them."""
    opened = open_version(version_dir(index, 1))
    embeddings = opened.embeddings(np.array([opened.row_of(item) for item in items]))
    similarity = embeddings @ embeddings.T
    np.fill_diagonal(similarity, -1)
    nearest = similarity.argmax(1).tolist()
    return float(np.mean([items[other][:2] == item[:2] for item, other in zip(items, nearest, strict=True)]))


def test_stats_tell_what_a_rebuild_would_fold_in(run: Run, index: Path, tiny_model: str) -> None:
    """Items beside the version, hidden ones, ones without an embedding of the model; none of it after a fold."""
    with closing(Catalog(index)) as catalog:
        vector = np.eye(1, 32, dtype=np.float32)[0]
        catalog.upsert([Upsert("up", embedding=vector, model=tiny_model)], dim=32)
        catalog.upsert([Upsert("of another", embedding=vector, model="other")], dim=32)
        catalog.delete(["garden/01.jpg"])
    keys = ("items", "delta_items", "hidden_items", "pending_items", "sequence")
    before = output_of(run("index", "stats", "photos", "--json"))
    assert [before[key] for key in keys] == [60, 1, 1, 1, 63]
    assert run("rebuild", "photos").exit_code == 0
    after = output_of(run("index", "stats", "photos", "--json"))
    assert [after[key] for key in keys] == [60, 0, 0, 1, 63]
    assert set(after["disk_bytes"]) == {"catalog", "version/1", "version/2"}  # type: ignore[call-overload]


def test_a_snapshot_is_restored_elsewhere(run: Run, index: Path, tmp_path: Path) -> None:
    """Two commands copy an index into another store; a third call is refused, as it is there."""
    assert output_of(run("index", "snapshot", "photos", tmp_path / "copy", "--json"))["items"] == 60
    words = ["index", "restore", str(tmp_path / "copy"), "--store", str(tmp_path / "other"), "--json"]
    assert output_of(CliRunner().invoke(kinsight, words))["index"] == "photos"
    refused = CliRunner().invoke(kinsight, words)
    assert refused.exit_code == 1
    assert "error: index 'photos' is in" in refused.stderr


def test_a_killed_rebuild_is_resumed_by_its_operation(
    store: Store, run: Run, index: Path, make_model: Callable[..., str]
) -> None:
    """SIGKILL leaves an interrupted operation, which `operations resume` brings to its end, also in a moved store."""
    model = make_model(store, seed=5)
    place = ["--store", store.root]
    with started("rebuild", "photos", "--model", model, *place) as process:
        until(lambda: bool(list(index.glob(".staging-*"))), PROCESS_S)
        process.kill()
        process.wait()
    last = operations.list_operations(store.operations)[-1]
    moved = Store(store.root.rename(store.root.with_name("moved")))
    if last.state == "interrupted":  # else it was faster than the signal, and resuming it must be refused
        with started("operations", "resume", last.id, "--store", moved.root) as process:
            _, stderr = process.communicate(timeout=60)
            assert process.returncode == 0, stderr
    assert operations.find(moved.operations, last.id).state == "done"
    assert not store.root.exists()
    moved.root.rename(store.root)
    refused = run("operations", "resume", last.id)
    assert (refused.exit_code, active_version(index)) == (1, 2)
    assert f"{last.id} is done; call it anew: kinsight rebuild photos" in refused.stderr


def test_following_a_folder_rebuilds_when_it_changes(store: Store, index: Path, more: Path) -> None:
    """A new image in the folder is in the next version; old versions do not pile up; Ctrl-C ends it."""
    words = ["rebuild", "photos", "--images", more, "--follow", "--interval", "0.1", "--keep", "0", "--json"]
    with started(*words, "--store", store.root) as process:
        assert process.stdout is not None
        counts = [json.loads(process.stdout.readline())["count"]]
        shutil.copy(more / "new.png", more / "newer.png")
        counts.append(json.loads(process.stdout.readline())["count"])
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=30)
    assert process.returncode == INTERRUPTED, stderr
    assert counts == [91, 92]
    assert (active_version(index), list_versions(index)) == (3, [2, 3])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nope"], "index 'nope' has no active version; build one with `kinsight index build`. Indexes here: photos"),
        (["No"], "'No' can't name an index; 1 to 63 of a-z, 0-9, _ and -, beginning with a letter or digit"),
        (["photos", "--model", "feed"], "no model 'feed' in {models}; it has: {model}"),
    ],
    ids=["index", "name", "model"],
)
def test_following_what_is_not_there_fails_at_once(
    words: list[str],
    said: str,
    run: Run,
    index: Path,
    tmp_path: Path,
    tiny_model: str,
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An empty folder may fill, but no waiting brings an index or a model."""
    monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("it waits"))
    (tmp_path / "inbox").mkdir()
    failed = run("rebuild", *words, "--images", tmp_path / "inbox", "--follow", "--interval", "0.1")
    assert failed.exit_code == 1
    assert failed.stderr == f"error: {said.format(models=store.models, model=tiny_model)}\n"


def test_following_waits_for_a_folder_to_fill(store: Store, index: Path, more: Path, tmp_path: Path) -> None:
    """An inbox that is empty yet is told of once, and fails no operation; SIGINT ends it in the background, too."""
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    words = ["rebuild", "photos", "--images", inbox, "--follow", "--interval", "0.1", "--store", store.root]
    with started(*words, in_background=True) as process:
        assert process.stderr is not None
        assert f"no image in {inbox} (it is empty)" in process.stderr.readline()
        time.sleep(0.5)  # several looks
        shutil.copy(more / "new.png", inbox)
        until(
            lambda: [one.state for one in operations.list_operations(store.operations)] == ["done", "done"], PROCESS_S
        )
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=30)
    assert process.returncode == INTERRUPTED, stderr
    assert "waiting for images" not in stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--learn", "--model", "m"], "give one of --model, --learn, --finetune"),
        (["--epochs", "2"], "are of --learn"),
        (["--follow"], "--follow needs --images"),
        (["--min-recall", "2"], "is not in the range"),
        (
            ["--finetune", "few.csv", "--method", "stml"],
            "'stml' is not one of 'stml-semi', 'cmsf-semi', 'supervised'",
        ),
    ],
    ids=["model", "epochs", "follow", "recall", "method"],
)
def test_a_wrong_call_of_rebuild_exits_with_2(run: Run, words: list[str], said: str) -> None:
    """Options that contradict one another are refused before any work."""
    result = run("rebuild", "photos", *words)
    assert result.exit_code == 2
    assert said in re.sub(r"\s+", " ", result.stderr)


@pytest.mark.slow
def test_learning_trains_on_and_embeds_anew(run: Run, store: Store, photos: Path, more: Path) -> None:
    """`--learn` makes a model from the index's model, and a version by it; killed while training, it goes on."""
    model = output_of(run("train", photos, *SMALL, "--json"))["model"]
    run("index", "build", "photos", photos, "--model", model)
    index_dir = store.index("photos")
    words = ["rebuild", "photos", "--images", more, "--learn", "--epochs", 1, "--device", "cpu"]
    with started(*words, "--store", store.root) as process:
        until(lambda: bool(list((index_dir / ".learning").glob("lesson.json"))), PROCESS_S)
        until(lambda: len(list(store.runs.glob("*/recipe.toml"))) == 2, PROCESS_S)
        process.kill()
        process.wait()
    assert active_version(index_dir) == 1
    found = output_of(run(*words, "--json"))
    assert (found["version"], found["count"], found["decoded"]) == (2, 91, 91)
    assert found["model"] != model
    assert (len(list(store.runs.iterdir())), (index_dir / ".learning").exists()) == (2, False)


@pytest.mark.slow
def test_a_training_that_fails_touches_nothing(run: Run, index: Path) -> None:
    """Its own message is the error; the index is as it was."""
    result = run("rebuild", "photos", "--learn")
    assert result.exit_code == 1
    assert "error: learning failed, exit code 1: " in result.stderr
    assert (active_version(index), list_versions(index)) == (1, [1])


def test_a_training_that_is_killed_is_told_as_such(index: Path, store: Store) -> None:
    """By what, why the system may have done it, and that the same command goes on; the index is as it was."""
    with started("rebuild", "photos", "--learn", "--device", "cpu", "--store", store.root) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        until(lambda: bool(children.read_text()), PROCESS_S)
        training = int(children.read_text())
        until(lambda: Path(f"/proc/{training}/oom_score_adj").read_text().strip() == str(OOM_SCORE), PROCESS_S)
        os.kill(training, signal.SIGKILL)
        _, stderr = process.communicate(timeout=PROCESS_S)
    assert process.returncode == 1
    why = "its process was killed by signal 9 (Killed), as the system does where memory runs out"
    assert f"error: learning failed, {why}; the same again goes on where it was" in stderr
    assert (active_version(index), list_versions(index)) == (1, [1])


@pytest.mark.slow
def test_what_was_taught_is_taken_back_by_one_command(run: Run, store: Store, photos: Path, tmp_path: Path) -> None:
    """A running server answers by the fine-tuned model, and after `index rollback` exactly as it did before."""
    model = output_of(run("train", photos, *SMALL, "--json"))["model"]
    output_of(run("index", "build", "photos", photos, "--model", model, "--json"))
    few = tmp_path / "few.csv"
    items = sorted(path.relative_to(photos).as_posix() for path in photos.rglob("*.*g"))
    few.write_text("path,class_id\n" + "".join(f"{item},{item[:6]}\n" for item in items[::5]))

    with serving(store) as served, Stubs(served.target) as stubs:

        def answers(version: int) -> list[list[Hit]]:
            until(lambda: stubs.indexes.GetIndex(GetIndexRequest()).active_version == version, PROCESS_S)
            searches = (SearchRequest(item=item, top_k=5) for item in items[:4])
            return [list(stubs.search.Search(search, timeout=30).hits) for search in searches]

        before = answers(1)
        words = ("--finetune", few, "--method", "supervised", "--epochs", 1, "--device", "cpu", "--json")
        found = json.loads(run("rebuild", "photos", *words).stdout)
        if found["refused"]:  # by what was measured of these noise pictures; the way back is the same
            output_of(run("index", "activate", "photos", 2, "--json"))
        taught = answers(2)
        assert run("index", "rollback", "photos").exit_code == 0
        again = answers(1)

    assert found["model"] != model
    assert taught != before
    assert again == before


@pytest.mark.slow
def test_nothing_is_trained_that_a_rebuild_does_not_ask_for(
    run: Run, store: Store, photos: Path, tmp_path: Path
) -> None:
    """It judges by searches: no baseline is learned from the labels alone, which would take as long again."""
    model = output_of(run("train", photos, *SMALL, "--json"))["model"]
    output_of(run("index", "build", "photos", photos, "--model", model, "--json"))
    few = tmp_path / "few.csv"
    items = sorted(path.relative_to(photos).as_posix() for path in photos.rglob("*.*g"))
    rows = (f"{item},{item[:6]},{'test' if number % 2 else 'train'}\n" for number, item in enumerate(items[::5]))
    few.write_text("path,class_id,split\n" + "".join(rows))

    done = run("rebuild", "photos", "--finetune", few, "--epochs", 1, "--device", "cpu", "--json")
    assert json.loads(done.stdout)["model"] != model
    assert "learn: train" in done.stderr
    assert "baseline" not in done.stderr


def test_what_was_just_built_is_no_old_version(run: Run, index: Path) -> None:
    """One that is not activated is kept to be looked at, however few old ones are."""
    for built in (2, 3):
        result = run("rebuild", "photos", "--no-activate", "--keep", 0, "--json")
        assert json.loads(result.stdout)["version"] == built
        assert list_versions(index) == [1, built]


def test_old_versions_stay_while_the_next_build_is_at_work(
    run: Run, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be taking their embeddings; the rebuild itself is done, and says so."""
    assert run("rebuild", "photos", "--no-activate").exit_code == 0
    with ExitStack() as next_build:

        def told(done: BuildReport, before: Sequence[str]) -> dict[str, object]:
            next_build.enter_context(sole_builder(index))
            return result_of(done, before)

        monkeypatch.setattr("clients.cli.rebuild.result_of", told)
        result = run("rebuild", "photos", "--keep", 0, "--json")
    assert (result.exit_code, list_versions(index)) == (0, [1, 2, 3])
    assert "warning: old versions are kept for now: process" in result.stderr
