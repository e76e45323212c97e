"""`kinsight calibrate`: from labels of drawn pictures to a curve in the model's manifest."""

import json
import os
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from click.testing import CliRunner, Result
from kinsight_client import Client
from PIL import Image

from clients.cli.command import kinsight
from indexer import calibrate as calibrating
from indexer import manifest
from indexer.build import build
from indexer.calibration import Calibration
from indexer.encoder import Encoder
from indexer.manifest import CorruptFile
from indexer.store import Store
from tests.conftest import full
from tests.serving import serving

Run = Callable[..., Result]

CLASSES, EACH = 6, 6


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`NN.png`, of class NN modulo 6: one drawing a class, each picture with other noise; and twenty equal ones."""
    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(3)
    drawn = rng.integers(0, 256, (CLASSES, 6, 6, 3))
    for number in range(CLASSES * EACH):
        noisy = drawn[number % CLASSES] + rng.integers(-90, 90, (6, 6, 3))
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).resize((40, 40)).save(root / f"{number:02d}.png")
    for number in range(20):
        Image.new("RGB", (40, 40), (90, 120, 30)).save(root / f"equal{number}.png")
        with (root / f"equal{number}.png").open("ab") as file:
            file.write(bytes([number]))  # the same pixels, but another file
    return root


@pytest.fixture
def calibrate(pictures: Path, store: Store, tiny_model: str, tmp_path: Path) -> Run:
    """Runs `kinsight calibrate` in this process, with the labels that it is given as text."""

    def invoke(labels: str | bytes, *words: object, images: Path = pictures) -> Result:
        table = tmp_path / "labels.csv"
        table.write_bytes(labels if isinstance(labels, bytes) else labels.encode())
        given = ["calibrate", tiny_model[:8], images, "--labels", table, "--store", store.root, *words]
        return CliRunner().invoke(kinsight, list(map(str, given)))

    return invoke


def classes(numbers: range = range(CLASSES * EACH)) -> str:
    """A table of classes."""
    return "\n".join(["path,class_id", *(f"{number:02d}.png,{number % CLASSES}" for number in numbers)]) + "\n"


def pairs(*more: str) -> str:
    """A table of pairs: of each picture with the next of its class, and with the next two of another."""
    rows = []
    for number in range(CLASSES * EACH - CLASSES):
        rows.append(f"{number:02d}.png,{number + CLASSES:02d}.png,same")
        rows += [f"{number:02d}.png,{number + further:02d}.png,different" for further in (1, 2)]
    return "\n".join(["path_a,path_b,relation", *rows, *more]) + "\n"


def test_the_curve_is_kept_with_the_model(calibrate: Run, store: Store, tiny_model: str) -> None:
    """The manifest has what is told, the keys are those of the help, and the model is the one that it was."""
    done = calibrate(classes() + "gone.png,1\n", "--json")

    assert done.exit_code == 0, done.stderr
    told = json.loads(done.stdout)
    named = CliRunner().invoke(kinsight, ["calibrate", "--help"]).stdout.partition("JSON keys:")[2]
    nested = {key for name in ("probabilities", "thresholds") for key in told[name][0]}
    assert {*told, *nested} <= set(re.findall(r"\w+", named))
    assert (told["images"], told["classes"], told["same"], told["different"]) == (36, 6, 90, 540)
    assert told["unknown_labels"] == ["gone.png"]
    assert "gone.png" in done.stderr
    kept = Calibration.of(manifest.read_model(store.model(tiny_model)).calibration)
    assert kept is not None
    assert (kept.ece_pairs, kept.ece_hits) == (told["ece_pairs"], told["ece_hits"])
    assert told["probabilities"][-1]["probability"] == kept.probability(1.0)
    assert told["probabilities"][-1]["probability"] > 0.8 > 0.2 > told["probabilities"][0]["probability"]
    assert Encoder.open(store.model(tiny_model), threads=1).manifest.id == tiny_model == told["model"]


def test_a_report_that_can_not_be_written_is_named(calibrate: Run, small_disk: Path) -> None:
    """On a full disk; no half of it is left, and the curve is kept."""
    with full(small_disk, 4096):
        failed = calibrate(classes(), "--report", small_disk / "report.html")
    assert failed.exit_code == 1
    assert f"error: {small_disk / 'report.html'}: No space left on device\n" in failed.stderr
    assert list(small_disk.iterdir()) == []


def test_rows_without_a_class_say_nothing_of_what_was_learned(calibrate: Run) -> None:
    """A table of all images, of which those to learn from are labelled, calibrates as it does without the others."""
    header, *rows = classes().splitlines()
    learned = "\n".join([f"{header},split", *(f"{row},train" for row in rows)])
    alone, among = (calibrate(learned + rest, "--json") for rest in ("", "\nequal0.png,,\nequal1.png,,test\n"))

    assert among.exit_code == 0, among.stderr
    assert "no split but train" in among.stderr
    assert among.stdout == alone.stdout


def test_people_read_tables(calibrate: Run) -> None:
    """Facts and the two tables, without braces; what is not known is `none`."""
    done = calibrate(pairs())

    assert done.exit_code == 0, done.stderr
    assert re.search(r"^ece_hits +none$", done.stdout, re.MULTILINE)
    assert re.search(r"^ *similarity +probability *$", done.stdout, re.MULTILINE)
    columns = ("min_probability", "min_similarity", "false_accept_rate", "true_accept_rate")
    assert any(line.split() == [*columns] for line in done.stdout.splitlines())


def test_probabilities_are_lower_where_more_things_are_told_of(calibrate: Run, tmp_path: Path) -> None:
    """The output says for how many things they hold; pairs, which do not say how many they show, are refused."""
    page = tmp_path / "page.html"
    as_labelled = json.loads(calibrate(classes(), "--json").stdout)
    many = json.loads(calibrate(classes(), "--things", 600, "--json").stdout)
    told = calibrate(classes(), "--things", 600, "--report", page)
    refused = calibrate(pairs(), "--things", 600)

    assert (as_labelled["things"], many["things"], many["classes"]) == (6, 600, 6)
    of_many, of_few = ([one["probability"] for one in curve["probabilities"]] for curve in (many, as_labelled))
    assert all(one <= other for one, other in zip(of_many, of_few, strict=True))
    assert sum(of_many) < 0.9 * sum(of_few)
    assert "hold for collections with about 600 different things. Where" in told.stdout
    assert "about 600 different things" in page.read_text()
    assert "among 6 different things" in page.read_text()
    assert "about 6 different things, like the labelled images" in calibrate(classes()).stdout
    assert refused.exit_code == 1
    assert "leave that number out" in refused.stderr
    assert calibrate(classes(), "--things", 1).exit_code == 2


def test_pairs_are_enough(calibrate: Run) -> None:
    """Their curve rises too; hits are not measured, and another seed holds out others."""
    one, same, other = (json.loads(calibrate(pairs(), "--json", "--seed", seed).stdout) for seed in (0, 0, 5))

    assert (one["same"], one["different"], one["ece_hits"]) == (30, 60, None)
    assert one["probabilities"][-1]["probability"] > 0.8 > 0.3 > one["probabilities"][0]["probability"]
    assert one == same
    assert one["probabilities"] == other["probabilities"]
    assert one["ece_pairs"] != other["ece_pairs"]


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ("path,class_id\n" + "".join(f"{n:02d}.png,a\n" for n in range(20)), "1 of the 1 labelled classes"),
        ("path,class_id\n" + "".join(f"{n:02d}.png,{n}\n" for n in range(20)), "0 of the 20 labelled classes"),
        (classes(range(12)), "6 pairs of the same thing and 60 of different ones; at least 20"),
        (classes(range(12)) + "gone.png,1\nlost.png,1\n", "label more images; 2 paths of "),
        (pairs().replace("different", "same"), "the pairs that are the same show 1 things"),
        ("", "has no column path"),
        ("path,class_id\n", "labels none of the 56 images"),
        ("path,class_id\n00.png,Möwe\n".encode("latin-1"), "is not UTF-8 text"),
        ("path,class_id\ngone.png,1\nlost.png,1\n", "2 paths are not there, for example 'gone.png'"),
        ("path,colour\n00.png,red\n", "has no column class_id"),
        ("path_a,path_b\n00.png,01.png\n", "has no column relation"),
        ("path,class_id,split\n00.png,1,Train\n", "line 2: split is 'Train'; it must be one of train"),
        ("path,class_id\n00.png,1\n\n,\n00.png,2\n", "line 5: '00.png' has two classes"),
        ("path,class_id\n" + "".join(f"equal{n}.png,{n % 5}\n" for n in range(10)), "same embedding"),
        (
            "path_a,path_b,relation\n00.png,06.png,same\n06.png,12.png,same\n12.png,00.png,different\n",
            "contradicts itself: 00.png = 06.png (line 2), 06.png = 12.png (line 3), but 00.png ≠ 12.png (line 4)",
        ),
        (pairs("06.png,00.png,different"), "00.png = 06.png (line 2), but 00.png ≠ 06.png (line 92)"),
    ],
    ids=[
        "one class",
        "one image a class",
        "too few pairs",
        "too few are there",
        "pairs of one thing",
        "empty",
        "header",
        "encoding",
        "not there",
        "no class_id",
        "no relation",
        "unknown split",
        "two classes",
        "equal images",
        "chain",
        "contradiction",
    ],
)
def test_labels_that_say_too_little_are_one_line(
    calibrate: Run, store: Store, tiny_model: str, labels: str | bytes, said: str
) -> None:
    """The error says what is missing, and the model stays as it was."""
    done = calibrate(labels)

    assert done.exit_code == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert said in line
    assert manifest.read_model(store.model(tiny_model)).calibration == {}


def test_pairs_of_equal_images_are_refused(calibrate: Run) -> None:
    """No similarity can mean anything where all are one."""
    rows = [
        f"equal{a}.png,equal{b}.png,{'same' if a // 5 == b // 5 else 'different'}"
        for a in range(20)
        for b in range(a)
    ]
    done = calibrate("\n".join(["path_a,path_b,relation", *rows]))
    assert done.exit_code == 1
    assert "not more similar under this model than others" in done.stderr


def test_copies_count_once(calibrate: Run, pictures: Path, tmp_path: Path) -> None:
    """Of classes and of pairs: what is the same file is alike under every model, and made any curve look surer."""
    folder = tmp_path / "with copies"
    shutil.copytree(pictures, folder)
    for number in range(CLASSES * EACH):
        shutil.copy(folder / f"{number:02d}.png", folder / f"copy{number:02d}.png")
    of_copies = "".join(f"copy{number:02d}.png,{number % CLASSES}\n" for number in range(CLASSES * EACH))
    same = [f"copy{number:02d}.png,{number:02d}.png,same" for number in range(CLASSES * EACH)]
    again = [f"copy{row}" for row in pairs().splitlines()[1:]]
    for labels, more in ((classes(), of_copies), (pairs(), "\n".join([*same, *again]))):
        without, with_copies = calibrate(labels, "--json"), calibrate(labels + more, "--json", images=folder)
        told, told_with = json.loads(without.stdout), json.loads(with_copies.stdout)
        assert "36 of the images that " in told_with["warnings"].pop()
        assert told_with == told
        assert (
            "copies of others with that label and count once, for example copy00.png = 00.png" in with_copies.stderr
        )
    alone = calibrate("\n".join(["path_a,path_b,relation", *same]), images=folder)
    assert alone.exit_code == 1
    assert "the pairs that are the same show 0 things" in alone.stderr
    assert "36 of the images that " in alone.stderr


def test_of_many_labels_some_are_drawn_and_probabilities_are_for_all(
    calibrate: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fewer classes show in the images that are drawn, but two are the same as often as of all that are labelled."""
    monkeypatch.setattr(calibrating, "MAX_IMAGES", 28)
    labels = classes() + "".join(f"equal{number}.png,single {number}\n" for number in range(5))
    done = calibrate(labels, "--json")
    untold, told = json.loads(done.stdout), json.loads(calibrate(labels, "--json", "--things", 11).stdout)
    assert "28 of the 41 labelled images were drawn at random" in done.stderr
    assert untold["classes"] < 11
    assert untold == told
    assert untold["things"] == 11


def test_of_many_pairs_as_many_are_drawn_as_some_images_show(
    calibrate: Run, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where each image is in one pair, few pairs would have both of their images among some that are drawn."""
    monkeypatch.setattr(calibrating, "MAX_IMAGES", 110)
    folder, rows = tmp_path / "copies", ["path_a,path_b,relation"]
    folder.mkdir()
    for copy in range(6):
        for number in range(CLASSES * EACH):
            (folder / f"{copy}{number:02d}.png").write_bytes((pictures / f"{number:02d}.png").read_bytes())
        for first in range(0, CLASSES * EACH, 2 * CLASSES):
            others = [first + CLASSES + (number + copy % 2) % CLASSES for number in range(CLASSES)]
            relation = ("same", "different")[copy % 2]
            rows += [f"{copy}{first + a:02d}.png,{copy}{b:02d}.png,{relation}" for a, b in enumerate(others)]
    done = calibrate("\n".join(rows), "--json", images=folder)
    assert done.exit_code == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["images"], told["same"] + told["different"]) == (110, 55)
    assert "110 of the 216 labelled images were drawn at random" in done.stderr


def test_images_that_can_not_be_decoded_are_a_reason_for_too_few(calibrate: Run, tmp_path: Path) -> None:
    """Who labelled many is not told to label more alone."""
    for number in range(CLASSES * EACH):
        (tmp_path / f"{number:02d}.png").write_bytes(b"no picture")
    done = calibrate(classes(), images=tmp_path)
    assert done.exit_code == 1
    assert "36 labelled images could not be decoded, for example '00.png': " in done.stderr


def test_links_are_only_followed_where_labels_lie_nowhere_else(
    calibrate: Run, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a million images, to ask where each leads takes longer than all else; also found are those behind links."""
    asked, real = list[str](), os.path.realpath

    def ask(path: str, **options: Any) -> str:
        asked.append(str(path))
        return real(path, **options)

    monkeypatch.setattr(os.path, "realpath", ask)
    assert calibrate(classes()).exit_code == 0
    assert [path for path in asked if path.endswith(".png")] == []
    (tmp_path / "elsewhere").symlink_to(pictures)
    absolute = classes().replace("\n0", f"\n{tmp_path}/elsewhere/0")
    done = calibrate(absolute, "--json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["unknown_labels"] == []


def test_links_in_a_circle_among_the_images_are_skipped(calibrate: Run, pictures: Path, tmp_path: Path) -> None:
    """A folder that holds such links, and a label of one, is calibrated with the other images."""
    folder = tmp_path / "links"
    folder.mkdir()
    for picture in pictures.glob("??.png"):
        (folder / picture.name).symlink_to(picture)
    (folder / "x.png").symlink_to("y.png")
    (folder / "y.png").symlink_to("x.png")
    done = calibrate(classes() + "x.png,1\n", "--json", images=folder)
    assert done.exit_code == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["images"], [skipped["item"] for skipped in told["skipped"]]) == (CLASSES * EACH, ["x.png"])


def test_images_that_are_not_there_are_named(calibrate: Run, tmp_path: Path) -> None:
    """A collection that can't be read is an error with its path."""
    done = calibrate(classes(), images=tmp_path / "nowhere")
    assert done.exit_code == 1
    assert "nowhere" in done.stderr


def test_a_calibration_changed_by_hand_is_refused(calibrate: Run, store: Store, tiny_model: str) -> None:
    """The manifest's seal covers the curve: no search is made with one that nobody fitted."""
    assert calibrate(classes()).exit_code == 0
    path = store.model(tiny_model) / manifest.MANIFEST
    fields = json.loads(path.read_text())
    fields["calibration"]["probabilities"][-1] = 0.999
    path.write_text(json.dumps(fields))

    with pytest.raises(CorruptFile, match=rf"{tiny_model}/manifest\.json was changed"):
        manifest.read_model(store.model(tiny_model))
    again = calibrate(classes())
    assert again.exit_code == 1
    assert f"{tiny_model}/manifest.json was changed" in again.stderr


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [
            f"{tag} {name}" for name, _ in attrs if name in ("src", "href", "xlink:href", "srcset", "data")
        ]
        self.found += [tag] if tag in ("script", "link", "iframe", "object") else []


def test_the_report_is_one_page_of_drawings(calibrate: Run, tmp_path: Path) -> None:
    """It refers to nothing outside, its drawings are well-formed, and both errors, dots and the curve are there."""
    page = tmp_path / "page.html"
    told = json.loads(calibrate(classes(), "--report", page, "--json").stdout)
    text = page.read_text()

    links = _Links()
    links.feed(text)
    assert not links.found
    assert not re.search(r"https?://|@import|url\(", text)
    drawings = [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", text, re.DOTALL)]
    assert [len(drawing.findall("circle")) > 5 for drawing in drawings] == [True, True, False]
    assert all(drawing.find("path") is not None for drawing in drawings)
    for error in (told["ece_pairs"], told["ece_hits"]):
        assert f"{error:.3f}" in text
    assert told["model"] in text


def test_a_report_that_can_not_be_written_is_refused_before_the_model_is_changed(
    calibrate: Run, store: Store, tiny_model: str, tmp_path: Path
) -> None:
    """Nobody is told of a failure whose curve is searched by."""
    refused = calibrate(classes(), "--report", tmp_path / "none" / "page.html")
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert f"there is no folder {tmp_path / 'none'}" in refused.stderr
    assert not manifest.read_model(store.model(tiny_model)).calibration


def test_searches_show_probabilities_and_say_where_there_is_no_good_match(
    calibrate: Run, pictures: Path, store: Store, tiny_model: str
) -> None:
    """An uncalibrated model is an error that names the command; with a curve, too improbable hits are left out."""
    build("drawn", pictures, model=tiny_model, store=store, device="cpu", progress=lambda *_: None)

    def search(target: str, *words: object) -> Result:
        query = Path(pictures / "03.png")
        return CliRunner().invoke(kinsight, [str(word) for word in ("search", query, "--server", target, *words)])

    with serving(store) as served:
        uncalibrated = search(served.target, "--probability")
    assert calibrate(classes()).exit_code == 0
    with serving(store) as served, Client(served.target) as client:
        shown = json.loads(search(served.target, "--probability", "--json").stdout)["hits"]
        nothing = search(served.target, "--min-probability", 1)
        empty = json.loads(search(served.target, "--min-probability", 1, "--json").stdout)
        found = client.search(image=pictures / "03.png", min_probability=0.5)

    assert uncalibrated.exit_code == 1
    assert "kinsight calibrate" in uncalibrated.stderr
    kept = [hit["item"] for hit in shown if hit["probability"] >= 0.5]
    assert [hit.item for hit in found.hits] == kept
    assert 0 < len(kept) < len(shown)
    assert found.false_accept_rate is not None
    assert nothing.exit_code == 0
    assert nothing.stdout.splitlines() == [
        f"{pictures / '03.png'}: no good match: no item has a probability of at least 1",
        "false accepts: 0.00% of pairs of images of different things reach a probability of 1",
    ]
    assert (empty["hits"], empty["false_accept_rate"]) == ([], 0.0)
