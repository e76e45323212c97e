"""What strangers install: the client's own wheel, and its examples."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.serving import Gallery, Served, build_photos, photo, serving

CLIENT = Path(__file__).parents[2] / "clients" / "python"


def test_the_wheel_holds_the_client_and_the_stubs_and_works_alone(
    tmp_path: Path, served: Served, gallery: Gallery
) -> None:
    """From the wheel only, with nothing else of ours importable."""
    built = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path],
        cwd=CLIENT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "installed")
    names = {path.name for path in (tmp_path / "installed").iterdir() if path.suffix != ".dist-info"}
    assert names == {"kinsight_client", "kinsight"}
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import kinsight_client\n"
        "assert kinsight_client.__file__.startswith(sys.argv[1]), kinsight_client.__file__\n"
        "assert not {'server', 'indexer', 'trainer', 'faiss'} & set(sys.modules)\n"
        "with kinsight_client.Client(sys.argv[2]) as client: print(client.search(item=sys.argv[3]).hits[0].item)\n"
    )
    arguments = [sys.executable, "-c", script, str(tmp_path / "installed"), served.target, gallery.items[1]]
    result = subprocess.run(arguments, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (gallery.items[1], "") == (result.stdout.strip(), result.stderr)


def example(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """What an example says when a stranger runs it."""
    command = [sys.executable, str(CLIENT / "examples" / name), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_example_runs(tmp_path: Path, served: Served, gallery: Gallery) -> None:
    """As its first line says, with a photograph, a target and an index; and what can't be done is a clear error."""
    (tmp_path / "photo.png").write_bytes(photo(8))
    (tmp_path / "notes.png").write_text("not a photo")
    good = example("search.py", tmp_path / "photo.png", served.target, "photos")
    bad = example("search.py", tmp_path / "notes.png", served.target)
    nowhere = example("search.py", tmp_path / "photo.png", served.target, "nowhere")
    gone = example("search.py", tmp_path / "gone.png", served.target)
    assert good.stdout.splitlines()[1] == f"1.0000  {gallery.items[8]}"
    assert (bad.returncode, bad.stderr.partition(":")[0]) == (1, "IMAGE_DECODE_FAILED")
    assert (nowhere.returncode, nowhere.stderr.partition(":")[0]) == (1, "INDEX_NOT_FOUND")
    assert (gone.returncode, gone.stderr.partition("gone.png ")[2]) == (
        1,
        "can't be read: No such file or directory\n",
    )


@pytest.mark.parametrize("name", ["search.py", "collection.py"])
def test_an_example_says_what_it_is_called_with(name: str) -> None:
    """Where it is called with nothing."""
    called = example(name)
    assert called.returncode == 1
    assert f"`python {name} " in called.stderr
    assert "Traceback" not in called.stderr


def test_the_collection_example_runs(tmp_path: Path) -> None:
    """Upsert, search by a condition, delete, build and roll back, with a photograph that is none among them."""
    store, new = build_photos(tmp_path), tmp_path / "new"
    new.mkdir()
    for seed in range(100, 106):
        (new / f"{seed}.png").write_bytes(photo(seed, side=seed))
    (new / "notes.png").write_text("not a photo")
    with serving(store) as served:
        done = example("collection.py", new, served.target, "photos")
    lines = done.stdout.splitlines()
    assert (done.returncode, done.stderr) == (0, "")
    assert lines[0].startswith("left out notes.png: ")
    assert lines[1] == "upserted 6 of 7"
    assert "deleted 100.png" in lines
    assert lines[-2:] == ["version 2: 29 items, active", "rolled back from version 2 to 1; 29 items as before"]


def test_the_collection_example_takes_any_folder(tmp_path: Path) -> None:
    """One photograph is enough; a folder without any, and one that is not there, are clear errors."""
    store, one, none = build_photos(tmp_path), tmp_path / "one", tmp_path / "none"
    one.mkdir()
    none.mkdir()
    (one / "100.png").write_bytes(photo(100))
    with serving(store) as served:
        done = example("collection.py", one, served.target)
        empty = example("collection.py", none, served.target)
        gone = example("collection.py", tmp_path / "gone", served.target)
    assert (done.returncode, done.stderr) == (0, "")
    assert "deleted 100.png" in done.stdout
    assert (empty.returncode, empty.stderr.partition(";")[0]) == (1, "nothing to search for")
    assert (gone.returncode, gone.stderr) == (1, f"{tmp_path / 'gone'} can't be read: No such file or directory\n")
