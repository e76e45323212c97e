"""Rebuilding an index from its catalogue and new images: what is kept, what is refused, and what a crash costs."""

import hashlib
import io
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from indexer import adopt, manifest, plan, version
from indexer.build import BuildReport, build
from indexer.calibrate import calibrate
from indexer.catalog import Catalog
from indexer.importing import import_items
from indexer.labels import LabelsError
from indexer.live import LiveIndex
from indexer.live_snapshot import Snapshot
from indexer.manifest import CorruptFile
from indexer.rebuild import NoActiveVersion, rebuild
from indexer.records import Upsert
from indexer.rows import Embeddings
from indexer.staging import BuildInProgress, sole_builder
from indexer.store import Store
from tests.conftest import TINY_DIM
from tests.serving import CURVE
from tests.waiting import until

NAME = "street"

# A rebuild in a process of its own, made to save after each batch of 4, that hears of an upsert once all is embedded,
# and is killed at a moment of its progress.
CHILD = """
import io, os, signal, sys
from pathlib import Path
from indexer import embedding
from indexer.catalog import Catalog
from indexer.rebuild import rebuild
from indexer.records import Upsert
from indexer.store import Store

embedding.BATCH, embedding.SAVE_EVERY_S = 4, 0.0
store, model, image, stage, kill_at = Store(Path(sys.argv[1])), sys.argv[2], Path(sys.argv[3]), *sys.argv[4:]

def progress(now, done, total):
    if now == "embed" and done == total:
        late = Upsert("late", image=image.read_bytes())
        assert not Catalog(store.index("street")).upsert([late], dim=32)[0].reason
    if now == stage and done >= int(kill_at):
        os.kill(os.getpid(), signal.SIGKILL)

rebuild("street", store=store, model=model, progress=progress)
"""


def quiet(stage: str, done: int, total: int) -> None:
    assert 0 <= done <= total, stage


@pytest.fixture
def more(tmp_path: Path) -> Path:
    """A folder of 20 other pictures."""
    return pictures(tmp_path / "more", 20, seed=11)


def pictures(folder: Path, count: int, seed: int) -> Path:
    folder.mkdir()
    for number in range(count):
        (folder / f"new-{number:02d}.png").write_bytes(picture(seed * 1_000 + number))
    return folder


def picture(seed: int) -> bytes:
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    data = io.BytesIO()
    Image.fromarray(coarse).resize((70, 60)).save(data, "PNG")
    return data.getvalue()


def unit(seed: int, dim: int = TINY_DIM) -> Embeddings:
    vector = np.random.default_rng(seed).standard_normal(dim)
    return np.asarray(vector / np.linalg.norm(vector), np.float32)


def upsert(index_dir: Path, *upserts: Upsert, dim: int = TINY_DIM) -> None:
    with closing(Catalog(index_dir)) as catalog:
        assert {outcome.reason for outcome in catalog.upsert(upserts, dim=dim)} == {""}


def delete(index_dir: Path, *items: str) -> None:
    with closing(Catalog(index_dir)) as catalog:
        assert {outcome.reason for outcome in catalog.delete(items)} == {""}


def searched(index_dir: Path) -> set[str]:
    """Every item that a search can find."""
    snapshot = snapshot_of(index_dir)
    query = np.eye(1, snapshot.version.manifest.dim, dtype=np.float32)
    _, rows = snapshot.search(query, snapshot.count, exact=True)
    return set(snapshot.items(rows[0]))


def snapshot_of(index_dir: Path) -> Snapshot:
    number = version.active_version(index_dir)
    assert number is not None
    opened = version.open_version(version.version_dir(index_dir, number))
    with closing(adopt.open_catalog(index_dir)) as catalog:
        return LiveIndex(opened, catalog).snapshot


def items_of(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*.*") if path.is_file()}


def figures(report: BuildReport) -> tuple[int, int, int, bool]:
    return report.count, report.reused, report.decoded, report.activated


def test_folding_takes_upserts_and_deletions_and_decodes_nothing(
    store: Store, tiny_model: str, photos: Path, index: Path
) -> None:
    """A rebuild without images holds what was upserted, not what was deleted, and reads no image."""
    upsert(index, Upsert("up", embedding=unit(1), model=tiny_model, image=picture(1)))
    delete(index, "garden/01.jpg")
    shutil.rmtree(photos)
    report = rebuild(NAME, store=store, progress=quiet)
    assert figures(report) == (60, 60, 0, True)
    snapshot = snapshot_of(index)
    assert (snapshot.count, snapshot.hidden, snapshot.delta.count) == (60, 0, 0)
    np.testing.assert_array_equal(snapshot.embedding(snapshot.row_of("up")), unit(1))
    assert "garden/01.jpg" not in searched(index)


def test_imported_images_are_not_embedded_again(store: Store, index: Path, more: Path) -> None:
    """What an import embedded is in the catalogue, so folding it in reads no image, though each item has a file."""
    assert import_items(NAME, more, store=store, progress=quiet).imported == 20
    shutil.rmtree(more)
    assert figures(rebuild(NAME, store=store, progress=quiet)) == (80, 80, 0, True)


def test_only_new_images_are_decoded(store: Store, photos: Path, index: Path, more: Path) -> None:
    """Images with known content are hashed, not decoded, under whatever name; changed ones are embedded anew."""
    shutil.copy(photos / "garden" / "01.jpg", more / "copy.jpg")
    first = rebuild(NAME, more, store=store, progress=quiet)
    assert figures(first) == (81, 61, 20, True)
    (more / "new-00.png").write_bytes(picture(77))
    second = rebuild(NAME, more, store=store, progress=quiet)
    assert figures(second) == (81, 80, 1, True)
    assert searched(index) == items_of(photos) | items_of(more)


def test_a_digest_that_ends_in_a_zero_byte_is_known_again(store: Store, index: Path, more: Path) -> None:
    """One image in 256 has such a digest, and NumPy drops zero bytes at the end of an element: it is reused too."""
    rng = np.random.default_rng(5)
    data = picture(1)
    while not hashlib.sha256(data).digest().endswith(b"\0"):
        data = picture(1) + rng.bytes(8)  # what follows a PNG's end is not decoded
    (more / "new-00.png").write_bytes(data)
    rebuild(NAME, more, store=store, progress=quiet)
    assert figures(rebuild(NAME, more, store=store, progress=quiet)) == (80, 80, 0, True)


def test_a_mirror_drops_what_left_and_keeps_what_people_did(
    store: Store, tiny_model: str, photos: Path, index: Path, more: Path
) -> None:
    """Building from a folder again: files that left are gone and come back; upserts stay, deletions stay deleted."""
    rebuild(NAME, more, store=store, progress=quiet)
    upsert(index, Upsert("up", embedding=unit(1), model=tiny_model))
    delete(index, "garden/01.jpg")
    (photos / "street" / "00.png").rename(photos.parent / "away.png")
    report = build(NAME, photos, model=tiny_model, store=store, progress=quiet)
    assert (*figures(report), report.deleted) == (59, 59, 0, True, 1)
    assert searched(index) == items_of(photos) - {"garden/01.jpg"} | {"up"}
    (photos.parent / "away.png").rename(photos / "street" / "00.png")
    build(NAME, photos, model=tiny_model, store=store, progress=quiet)
    assert searched(index) == items_of(photos) - {"garden/01.jpg"} | {"up"}


def test_what_was_upserted_wins_over_the_file_of_that_name(
    store: Store, tiny_model: str, photos: Path, index: Path
) -> None:
    """A folder never takes back what was upserted under one of its ids."""
    upsert(index, Upsert("garden/01.jpg", embedding=unit(5), model=tiny_model))
    report = rebuild(NAME, photos, store=store, progress=quiet)
    assert (report.upserted, report.count) == (1, 60)
    snapshot = snapshot_of(index)
    np.testing.assert_array_equal(snapshot.embedding(snapshot.row_of("garden/01.jpg")), unit(5))


def test_another_model_embeds_everything_anew(
    store: Store, make_model: Callable[..., str], tiny_model: str, photos: Path, tmp_path: Path
) -> None:
    """From files, archives and the catalogue; what is only an embedding of the old model is named."""
    archive = tmp_path / "shard.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(photos, arcname=".")
    build(NAME, archive, model=tiny_model, store=store, progress=quiet)
    index_dir = store.index(NAME)
    given = [Upsert("image", embedding=unit(1), model=tiny_model, image=picture(1))]
    upsert(index_dir, *given, Upsert("only", embedding=unit(2), model=tiny_model))
    other = make_model(store, seed=5)
    report = rebuild(NAME, store=store, model=other, progress=quiet)
    assert figures(report) == (61, 0, 61, True)
    ((item, reason),) = report.skipped
    assert item == "only"
    assert "only an embedding of another model" in reason
    assert len(searched(index_dir)) == 61
    assert adopt.rollback(store, NAME) == 1
    assert len(searched(index_dir)) == 62


def test_another_model_of_too_few_items_to_compare_is_told(
    store: Store, make_model: Callable[..., str], tiny_model: str, photos: Path
) -> None:
    """It is activated all the same, as nothing speaks against it; under one model recall says it all."""
    for picture in sorted(photos.rglob("*.*"))[20:]:
        picture.unlink()
    build("few", photos, model=tiny_model, store=store, progress=quiet)
    same = rebuild("few", store=store, progress=quiet)
    assert not any("nothing was compared" in warning for warning in same.warnings)
    report = rebuild("few", store=store, model=make_model(store, seed=2), progress=quiet)
    assert (report.activated, report.comparison) == (True, None)
    (told,) = [warning for warning in report.warnings if "nothing was compared" in warning]
    assert told.startswith(
        f"nothing was compared with version {same.version}, though the model is another: fewer than"
    )


def test_a_model_without_the_calibration_that_the_one_before_had_is_told(
    store: Store, make_model: Callable[..., str], index: Path
) -> None:
    """Searches by probability are refused at once; nothing ends where neither or both have one."""
    one, other, third = (make_model(store, seed=seed) for seed in (2, 3, 4))

    def told(model: str) -> list[str]:
        report = rebuild(NAME, store=store, model=model, progress=quiet)
        return [warning for warning in report.warnings if "calibration" in warning]

    assert told(one) == []
    manifest.amend_model(store.model(one), CURVE.fields())
    (warning,) = told(other)
    assert warning.startswith(f"model {other} has no calibration, which model {one} has: searches of version 3 by")
    heard, searched = list[str](), list[int | None]()

    def hear(told: str) -> None:
        heard.append(told)
        searched.append(version.active_version(index))

    for number in (2, 3, 1, 3):  # the first one that is active has none either
        adopt.activate(store, NAME, number, warn=hear)
    assert (heard, searched) == ([warning], [2])  # told before it is searched
    assert adopt.rollback(store, NAME, warn=heard.append) == 1
    assert heard == [warning]
    adopt.activate(store, NAME, 2)
    (version.version_dir(index, 2) / "manifest.json").write_text("{}")
    adopt.activate(store, NAME, 3, warn=heard.append)  # what the damaged one had, nobody misses
    (index / "active").write_text("?")
    adopt.activate(store, NAME, 3, warn=heard.append)
    assert version.active_version(index) == 3
    assert heard == [warning]
    for model in (other, third):
        manifest.amend_model(store.model(model), CURVE.fields())
    assert told(third) == []


def test_another_model_is_calibrated_by_the_labels_that_judge_it(
    store: Store, make_model: Callable[..., str], tmp_path: Path
) -> None:
    """As the one before is, for as many things: searches by probability were refused from the swap on."""
    one, other = (make_model(store, seed=seed) for seed in (2, 3))
    pictures, rng = tmp_path / "pictures", np.random.default_rng(3)
    pictures.mkdir()
    drawn = rng.integers(0, 256, (6, 6, 6, 3))
    for number in range(36):
        noisy = drawn[number % 6] + rng.integers(-90, 90, (6, 6, 3))
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).resize((40, 40)).save(pictures / f"{number:02d}.png")
    labels = tmp_path / "labels.csv"
    labels.write_text("path,class_id\n" + "".join(f"{number:02d}.png,{number % 6}\n" for number in range(36)))
    build(NAME, pictures, model=one, store=store, progress=quiet)
    calibrate(store.model(one), pictures, labels, things=40, progress=quiet)
    report = rebuild(NAME, store=store, model=other, labels=labels, progress=quiet)
    (told,) = [warning for warning in report.warnings if "calibrat" in warning]
    assert told.startswith(f"model {other} was calibrated by the 36 labelled items that judge it, so that searches")
    found = manifest.read_model(store.model(other)).calibration
    again = calibrate(store.model(other), pictures, labels, things=40, progress=quiet).fitted.calibration
    assert (found["things"], found["ece_pairs"]) == (40, pytest.approx(again.ece_pairs))
    assert found["probabilities"] == pytest.approx(again.probabilities)


def test_what_is_upserted_during_a_rebuild_is_found_after_it(
    store: Store, make_model: Callable[..., str], tiny_model: str, index: Path
) -> None:
    """An item that came under the old model while the new one was embedding is beside the new version."""
    other = make_model(store, seed=5)
    late = Upsert("late", embedding=unit(3), model=tiny_model, image=picture(3))

    def progress(stage: str, done: int, total: int) -> None:
        if (stage, done) == ("embed", total):
            upsert(index, late)
            delete(index, "garden/01.jpg")

    rebuild(NAME, store=store, model=other, progress=progress)
    snapshot = snapshot_of(index)
    assert (snapshot.version.manifest.model, snapshot.count, snapshot.hidden) == (other, 60, 1)
    assert {"late"} == searched(index) - set(snapshot.version.items(range(60)))
    assert "garden/01.jpg" not in searched(index)


@pytest.mark.parametrize(
    ("stage", "done", "kept"), [("embed", 20, 12), ("embed", 61, 57), ("catch up", 1, 61)], ids=str
)
def test_a_killed_rebuild_goes_on(
    store: Store,
    make_model: Callable[..., str],
    tiny_model: str,
    photos: Path,
    index: Path,
    stage: str,
    done: int,
    kept: int,
) -> None:
    """SIGKILL leaves the old version active; the same rebuild keeps the finished rows and loses no item."""
    upsert(index, Upsert("up", embedding=unit(1), model=tiny_model, image=picture(1)))
    before = searched(index)
    other = make_model(store, seed=5)
    words = [str(store.root), other, str(photos / "street" / "00.png"), stage, str(done)]
    child = subprocess.run([sys.executable, "-c", CHILD, *words], capture_output=True, timeout=60, check=False)
    assert child.returncode == -signal.SIGKILL, child.stderr
    assert (version.active_version(index), searched(index)) == (1, before)
    report = rebuild(NAME, store=store, model=other, progress=quiet)
    late = set() if (stage, done) == ("embed", 20) else {"late"}
    assert (report.activated, searched(index)) == (True, before | late)
    # An item that came meanwhile makes another list of entries, into which the finished rows are taken.
    assert report.resumed + report.reused >= kept
    assert report.resumed + report.reused + report.decoded == 61 + len(late)


def test_a_second_builder_is_refused(store: Store, index: Path) -> None:
    """While one process builds an index, a rebuild of it is refused with that process's number."""
    with sole_builder(index), pytest.raises(BuildInProgress, match=f"process {os.getpid()} "):
        rebuild(NAME, store=store, progress=quiet)


def test_an_index_without_a_catalogue_gets_one(store: Store, photos: Path, index: Path, more: Path) -> None:
    """An index made before there were catalogues is rebuilt from its active version, decoding nothing of it."""
    for file in index.glob("catalog.sqlite*"):
        file.unlink()
    assert figures(rebuild(NAME, more, store=store, progress=quiet)) == (80, 60, 20, True)
    with closing(Catalog(index)) as catalog:
        assert catalog.count() == 80
    assert searched(index) == items_of(photos) | items_of(more)


def test_too_low_a_recall_is_refused(store: Store, make_model: Callable[..., str], hard: Embeddings) -> None:
    """A candidate below --min-recall is kept, named refused, and not searched; activating it by hand works."""
    model = make_model(store, seed=2, dim=64)
    index_dir = store.index(NAME)
    upserts = [Upsert(f"{row:04d}", embedding=hard[row], model=model) for row in range(4_200)]
    upsert(index_dir, *upserts[:50], dim=64)
    assert figures(rebuild(NAME, store=store, model=model, progress=quiet)) == (50, 50, 0, True)
    upsert(index_dir, *upserts[50:], dim=64)
    report = rebuild(NAME, store=store, min_recall=1.0, progress=quiet)
    assert (report.plan.kind, report.count, report.activated) == ("ivfpq", 4_200, False)
    assert report.recall.recall_at_10 < 1
    assert "recall@10 is 0.9" in report.refused
    assert "the 64 lists were trained on 50 rows each, not 64" in report.warnings[0]
    kept = version.open_version(version.version_dir(index_dir, 2)).manifest
    assert (version.active_version(index_dir), kept.refused) == (1, report.refused)
    adopt.activate(store, NAME, 2)
    assert version.active_version(index_dir) == 2


def test_an_index_keeps_the_recall_that_its_searches_are_to_have(
    store: Store, make_model: Callable[..., str], hard: Embeddings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A version is measured for it, may be activated with it, and the next one is built for the same."""
    monkeypatch.setattr(plan, "NPROBES", (1, *plan.NPROBES))
    model = make_model(store, seed=2, dim=64)
    upserts = [Upsert(f"{row:04d}", embedding=hard[row], model=model) for row in range(4_200)]
    upsert(store.index(NAME), *upserts[:50], dim=64)
    assert rebuild(NAME, store=store, model=model, target_recall=0.1, progress=quiet).plan.target_recall == 0.1
    upsert(store.index(NAME), *upserts[50:], dim=64)
    quick = rebuild(NAME, store=store, progress=quiet)
    assert (quick.plan.target_recall, quick.activated) == (0.1, True)
    assert quick.recall.recall_at_10 == quick.plan.measured[0].recall_at_10 < 0.95
    thorough = rebuild(NAME, store=store, target_recall=0.99, progress=quiet)
    assert thorough.recall.recall_at_10 > quick.recall.recall_at_10
    with pytest.raises(ValueError, match="target_recall is 0; it must be above 0 and at most 1"):
        rebuild(NAME, store=store, target_recall=0, progress=quiet)


@pytest.fixture
def clusters(store: Store, tiny_model: str, make_model: Callable[..., str], tmp_path: Path) -> tuple[str, Path]:
    """An index of 60 items that lie in 6 clusters; another model, under which they lie anywhere; and labels."""
    index_dir, other = store.index(NAME), make_model(store, seed=5)
    centres = [unit(100 + cluster) for cluster in range(6)]
    near = [centres[row % 6] + 0.1 * unit(row) for row in range(60)]
    upserts = [
        Upsert(f"{row}", embedding=vector / np.linalg.norm(vector), model=tiny_model)
        for row, vector in enumerate(near)
    ]
    upsert(index_dir, *upserts)
    rebuild(NAME, store=store, model=tiny_model, progress=quiet)
    with closing(Catalog(index_dir)) as catalog:
        for row in range(60):
            assert catalog.embed(catalog.get(f"{row}"), other, unit(1_000 + row))
    labels = tmp_path / "labels.csv"
    labels.write_text("path,class_id\n" + "".join(f"{row},{row % 6}\n" for row in range(60)))
    return other, labels


def test_a_worse_metric_is_refused(store: Store, clusters: tuple[str, Path], tiny_model: str) -> None:
    """Where neighbours stand out less under the new model, or share their class less, the old version stays.

    Labels of which no two are of one class say nothing of that.
    """
    other, labels = clusters
    unlabelled = rebuild(NAME, store=store, model=other, progress=quiet)
    assert (unlabelled.activated, version.active_version(store.index(NAME))) == (False, 1)
    assert "neighbours stand out less: contrast is" in unlabelled.refused
    labelled = rebuild(NAME, store=store, model=other, labels=labels, progress=quiet)
    assert "R@1 on 60 labelled items is 0." in labelled.refused
    assert labelled.comparison is not None
    assert labelled.comparison.recall_at_1 is not None
    assert labelled.comparison.recall_at_1.active == 1.0
    one_each = labels.with_name("one each.csv")
    one_each.write_text("path,class_id\n" + "".join(f"{row},{row}\n" for row in range(6)))
    unjudged = rebuild(NAME, store=store, model=other, labels=one_each, progress=quiet)
    assert unjudged.comparison is not None
    assert (unjudged.comparison.labelled, unjudged.comparison.recall_at_1) == (6, None)
    assert "neighbours stand out less: contrast is" in unjudged.refused
    adopt.activate(store, NAME, labelled.version)
    better = rebuild(NAME, store=store, model=tiny_model, labels=labels, progress=quiet)
    assert (better.refused, better.activated) == ("", True)


def test_losing_items_is_refused(store: Store, make_model: Callable[..., str], photos: Path, index: Path) -> None:
    """Where images can't be read for the new model, the old version stays, and each is named."""
    shutil.rmtree(photos / "garden")
    report = rebuild(NAME, store=store, model=make_model(store, seed=5), progress=quiet)
    assert "30 of 60 items would be lost" in report.refused
    assert (len(report.skipped), report.activated) == (30, False)
    assert "can't be read: No such file" in report.skipped[0][1]
    assert len(searched(index)) == 60


@pytest.mark.parametrize("gone", ["directory", "manifest"])
def test_a_lost_version_is_rebuilt_from_the_catalogue_alone(
    store: Store, tiny_model: str, photos: Path, index: Path, gone: str
) -> None:
    """With all that was built, upserted and not deleted, once it is told the model; a warning says what it lacked."""
    upsert(index, Upsert("embedded", embedding=unit(1), model=tiny_model), Upsert("image", image=picture(1)))
    delete(index, "garden/01.jpg")
    lost = version.version_dir(index, 1)
    if gone == "directory":
        shutil.rmtree(lost)
    else:
        (lost / "manifest.json").unlink()
    with pytest.raises(version.NoSuchVersion, match=r"or rebuild the index by `kinsight rebuild street --model ID`"):
        rebuild(NAME, store=store, progress=quiet)
    report = rebuild(NAME, store=store, model=tiny_model, progress=quiet)
    assert (report.version, *figures(report)) == (2, 61, 1, 60, True)
    assert report.warnings == ("nothing was compared with version 1, which is lost",)
    assert searched(index) == {*items_of(photos), "embedded", "image"} - {"garden/01.jpg"}


@pytest.mark.parametrize("damage", ["changed", "truncated", "deleted"])
def test_rows_of_a_damaged_version_are_not_used_again(store: Store, photos: Path, index: Path, damage: str) -> None:
    """A bad file of the active version is named, and the embeddings are made from the images again."""
    rows = version.version_dir(index, 1) / "rows.faiss"
    data = rows.read_bytes()
    if damage == "deleted":
        rows.unlink()
    else:
        rows.write_bytes(data[:-1] + (bytes([data[-1] ^ 1]) if damage == "changed" else b""))
    report = rebuild(NAME, store=store, progress=quiet)
    assert figures(report) == (60, 0, 60, True)
    assert [str(rows) in warning for warning in report.warnings] == [True, True]
    assert searched(index) == items_of(photos)


def test_what_can_not_be_rebuilt_says_why(store: Store, index: Path, tmp_path: Path) -> None:
    """No index, labels that name nothing, and a recall beyond 1 are refused before any work."""
    labels = tmp_path / "labels.csv"
    labels.write_text("path,class_id\nnowhere.jpg,1\n")
    with pytest.raises(NoActiveVersion, match=r"'other' has no active version.*: street"):
        rebuild("other", store=store, progress=quiet)
    pointer = index / "active"
    pointer.rename(index / "away")
    with pytest.raises(NoActiveVersion, match=r"'street' has no active version; activate one by .*: it has 1"):
        rebuild(NAME, store=store, progress=quiet)
    (index / "away").rename(pointer)
    with pytest.raises(LabelsError, match="gives a class to 0 items of the index"):
        rebuild(NAME, store=store, labels=labels, progress=quiet)
    with pytest.raises(ValueError, match=r"min_recall is 1\.5"):
        rebuild(NAME, store=store, min_recall=1.5, progress=quiet)
    assert version.list_versions(index) == [1]


def test_rolling_back_a_build_of_the_wrong_folder_finds_everything_again(
    store: Store, tiny_model: str, photos: Path, index: Path, more: Path
) -> None:
    """What left with the old folder is back; what people deleted stays deleted; and forth again."""
    delete(index, "garden/01.jpg")
    build(NAME, more, model=tiny_model, store=store, progress=quiet)
    for number, items in ((1, items_of(photos) - {"garden/01.jpg"}), (2, items_of(more))) * 2:
        assert (adopt.rollback(store, NAME), searched(index)) == (number, items)


def test_what_was_rolled_back_is_not_taken_in_by_the_next_build(
    store: Store, tiny_model: str, photos: Path, index: Path, more: Path
) -> None:
    """Neither what the other folder has, also under the same ids, after going back; nor the old after going forth."""
    same = photos / "garden" / "01.jpg"
    (more / "garden").mkdir()
    (more / "garden" / "01.jpg").write_bytes(picture(1))
    build(NAME, more, model=tiny_model, store=store, progress=quiet)
    for items, image in ((items_of(photos), same), (items_of(more), more / "garden" / "01.jpg")):
        adopt.rollback(store, NAME)
        with closing(Catalog(index)) as catalog:
            assert {one.item for one in catalog.page(limit=1_000)} == items
            assert catalog.get("garden/01.jpg").sha256 == hashlib.sha256(image.read_bytes()).hexdigest()
        before = snapshot_of(index)
        number = rebuild(NAME, store=store, activate=False, progress=quiet).version
        built = version.open_version(version.version_dir(index, number))
        assert {item for _, item, *_ in built.read_items()} == items
        now, then = built.row_of("garden/01.jpg"), before.row_of("garden/01.jpg")
        np.testing.assert_array_equal(built.embedding(now), before.embedding(then))


@pytest.mark.parametrize("verb", [build, rebuild])
def test_what_an_interrupted_switch_took_in_is_not_taken_in_by_the_next_build(
    store: Store,
    tiny_model: str,
    photos: Path,
    index: Path,
    more: Path,
    monkeypatch: pytest.MonkeyPatch,
    verb: Callable[..., BuildReport],
) -> None:
    """It ended when the catalogue had learned of the version, but before that was searched."""

    def end(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(version, "activate", end)
        with pytest.raises(KeyboardInterrupt):
            verb(NAME, more, model=tiny_model, store=store, progress=quiet)
    assert searched(index) == items_of(photos)
    assert rebuild(NAME, store=store, progress=quiet).count == 60
    assert searched(index) == items_of(photos)


def test_a_switch_leaves_what_another_one_has_noted_meanwhile(
    store: Store, index: Path, photos: Path, more: Path
) -> None:
    """That may be killed before its version is searched: the next build lets go of what it made known."""
    number = rebuild(NAME, more, store=store, activate=False, progress=quiet).version
    with closing(Catalog(index)) as one, closing(Catalog(index)) as other:
        with other.transaction():
            first = threading.Thread(target=adopt.switch, args=(index, one, 1))
            first.start()
            until(lambda: version.pointed(index) == (1,) and (index / ".switching-to").exists())
            time.sleep(0.1)
            adopt._begin(index, number)  # as `take_in` does, which then waits for the first one to have written
        first.join()
        adopt.adopt(other, version.open_version(version.version_dir(index, number)))
    assert searched(index) == items_of(photos)
    assert rebuild(NAME, store=store, progress=quiet).count == 60


def test_a_damaged_version_whose_activation_was_cut_short_is_rolled_back(
    store: Store, index: Path, photos: Path, more: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a power failure: what is still to be done for it must not keep anybody from the version before."""
    with monkeypatch.context() as patched:
        patched.setattr(adopt, "_agree", lambda *_: None)
        number = rebuild(NAME, more, store=store, progress=quiet).version
    (version.version_dir(index, number) / "manifest.json").unlink()
    assert adopt.rollback(store, NAME) == 1
    assert searched(index) == items_of(photos)
    assert rebuild(NAME, store=store, progress=quiet).count == 60


def test_damage_of_a_version_does_not_come_into_the_catalogue(store: Store, photos: Path, index: Path) -> None:
    """By a switch that was cut short: a letter that flipped in a file let go of one item and made up another."""
    items = version.version_dir(index, 1) / version.ITEMS
    items.write_bytes(items.read_bytes().replace(b"garden/01.jpg", b"garden/0!.jpg"))
    adopt._begin(index, 1)
    with pytest.raises(CorruptFile, match=f"{items} was changed"):
        adopt.open_catalog(index)
    with closing(Catalog(index)) as catalog:
        assert {one.item for one in catalog.page(limit=1_000)} == items_of(photos)


def test_what_a_version_could_not_read_is_taken_in_once_it_can_be(
    store: Store, tiny_model: str, make_model: Callable[..., str], photos: Path, index: Path
) -> None:
    """Also after the version was rolled back and activated again."""
    gone, kept = photos / "garden" / "01.jpg", photos / "garden" / "01.away"
    gone.rename(kept)
    report = rebuild(NAME, store=store, model=make_model(store, seed=5), progress=quiet)
    for number in (report.version, 1, report.version):
        adopt.activate(store, NAME, number)
    assert len(searched(index)) == 59
    kept.rename(gone)
    assert rebuild(NAME, store=store, progress=quiet).count == 60


def test_rolling_back_goes_to_the_version_before_and_forth(store: Store, index: Path, more: Path) -> None:
    """Rollback swaps the two last active versions; deletions hold in both; the active one can't be removed."""
    rebuild(NAME, more, store=store, progress=quiet)
    delete(index, "garden/01.jpg")
    assert (adopt.rollback(store, NAME), len(searched(index))) == (1, 59)
    assert (adopt.rollback(store, NAME), len(searched(index))) == (2, 79)
    with pytest.raises(version.VersionError, match="version 2 of street is active"):
        version.delete_version(index, 2)
    version.delete_version(index, 1)
    with pytest.raises(version.NoSuchVersion, match="no version that was active before"):
        adopt.rollback(store, NAME)
    assert (version.list_versions(index), version.active_version(index)) == ([2], 2)


def test_any_version_that_was_not_activated_is_known_once_it_is(store: Store, index: Path, more: Path) -> None:
    """Also where a later one was active before it: its items can be deleted, and the next version has the others."""
    rebuild(NAME, more, store=store, activate=False, progress=quiet)
    rebuild(NAME, store=store, progress=quiet)
    adopt.activate(store, NAME, 2)
    assert len(searched(index)) == 80
    delete(index, "new-00.png")
    assert rebuild(NAME, store=store, progress=quiet).count == 79


def test_items_that_another_model_cannot_find_are_told_before_it_embeds(
    store: Store, tiny_model: str, make_model: Callable[..., str], index: Path
) -> None:
    """Of some only an embedding is known: how many leave the search must not be found out by missing them."""
    upsert(index, *(Upsert(f"bare-{seed}", embedding=unit(seed), model=tiny_model) for seed in range(3)))
    upsert(index, Upsert("pictured", embedding=unit(9), model=tiny_model, image=picture(9)))
    other, heard = make_model(store, seed=1), list[str]()
    rebuild(NAME, store=store, warn=heard.append, progress=quiet)
    assert not heard
    rebuild(NAME, store=store, model=other, warn=heard.append, progress=lambda stage, *_: heard.append(stage))
    assert heard[0].startswith(f"3 items have no image and no embedding of model {other}: ")
    assert [told for told in heard if "no image" in told] == heard[:1]
    told = list[str]()
    for number in (1, 3, 1):
        adopt.activate(store, NAME, number, warn=told.append)
    assert adopt.rollback(store, NAME, warn=told.append) == 3
    assert told == heard[:1] * 2
