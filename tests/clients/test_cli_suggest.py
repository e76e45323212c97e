"""`kinsight suggest`: a table to fill in, and a page to label on."""

import base64
import csv
import hashlib
import io
import itertools
import json
import os
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from clients.cli.command import kinsight
from indexer.sources import open_collection
from indexer.store import Store
from trainer.labels import LabelsError, read_labels

Run = Callable[..., Result]


@pytest.fixture
def suggest(store: Store, tiny_model: str) -> Run:
    """Runs `kinsight suggest` in this process with the tiny model."""
    place = ["--model", tiny_model[:8], "--store", str(store.root)]
    return lambda *words: CliRunner().invoke(kinsight, ["suggest", *map(str, words), *place])


class Page(HTMLParser):
    """The fields, pictures and script of a sheet."""

    def __init__(self, page: str):
        super().__init__()
        self.fields: list[str | None] = []
        self.pictures: list[str | None] = []
        self.policy = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = dict(attributes)
        if tag == "input":
            self.fields.append(found["data-path"])
        if tag == "img":
            self.pictures.append(found["src"])
        if found.get("http-equiv") == "Content-Security-Policy":
            self.policy = str(found["content"])


def test_the_table_is_one_to_fill_in_for_finetuning(suggest: Run, photos: Path, tmp_path: Path) -> None:
    """As many different images as asked for, with an empty class that `finetune` waits for."""
    done = suggest(photos, "--budget", 7)

    assert done.exit_code == 0, done.stderr
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert [*rows[0]] == ["path", "class_id", "stands_for", "density_rank", "nearest", "similarity"]
    assert {row["class_id"] for row in rows} == {""}
    assert len({row["path"] for row in rows}) == 7
    table = tmp_path / "to_label.csv"
    table.write_text(done.stdout)
    with pytest.raises(LabelsError, match="none of its 7 rows has a class_id"):
        read_labels(table, open_collection(photos), to_teach=True)
    table.write_text(re.sub("^(.*?),,", r"\1,crow,", done.stdout, flags=re.MULTILINE))
    assert len(read_labels(table, open_collection(photos), to_teach=True).class_of) == 7
    assert suggest(photos, "--budget", 7).stdout == done.stdout
    assert re.findall(r"^(\w+)  \d", done.stderr, flags=re.MULTILINE) == ["embed"]  # nothing is judged


def test_a_sheet_in_no_folder_is_refused_before_any_work(suggest: Run, photos: Path, tmp_path: Path) -> None:
    """Whoever waits for a million images to be embedded gets the sheet."""
    done = suggest(photos, "--budget", 7, "--sheet", tmp_path / "nowhere" / "sheet.html")
    assert done.exit_code == 2
    assert f"--sheet: there is no folder {tmp_path / 'nowhere'}; make it, or name another file" in done.stderr
    assert "embed" not in done.stderr


def test_the_sheet_shows_what_is_suggested_and_runs_only_its_own_script(
    suggest: Run, photos: Path, tmp_path: Path
) -> None:
    """A picture and an empty field for each path of the table, hostile names included."""
    name = 'x"><script>alert(1)<,script>.png'
    Image.new("RGB", (60, 40), "teal").save(photos / name)
    sheet = tmp_path / "sheet.html"
    done = suggest(photos, "--budget", 61, "--sheet", sheet, "--json")

    assert done.exit_code == 0, done.stderr
    told = json.loads(done.stdout)
    html = sheet.read_text()
    page = Page(html)
    assert page.fields == [one["path"] for one in told["suggested"]]
    assert name in page.fields
    assert all(str(picture).startswith("data:image/webp;base64,") for picture in page.pictures)
    assert len(page.pictures) == 61
    (script,) = re.findall("<script>(.*?)</script>", html, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in page.policy
    assert "path,class_id" in script


def test_damaged_images_and_names_that_no_table_holds_are_told(suggest: Run, photos: Path) -> None:
    """They are not suggested, and the budget is kept as far as images last."""
    (photos / "zz.png").write_bytes(b"no image")
    odd = os.fsencode(photos) + b"/\xff.png"
    Path(os.fsdecode(odd)).write_bytes((photos / "street" / "00.png").read_bytes())
    for name in ("a\rb.png", "a\nb.png", "\x1b[2J.png", "\x9b2J.png"):  # those of the last two clear a terminal
        shutil.copy(photos / "street" / "00.png", photos / name)
    told = json.loads(suggest(photos, "--budget", 66, "--json").stdout)
    assert (told["images"], len({one["path"] for one in told["suggested"]})) == (60, 60)
    odd_names = {"%FF.png", "a%0Db.png", "a%0Ab.png", "%1B[2J.png", "%C2%9B2J.png"}
    assert {skipped["item"] for skipped in told["skipped"]} == {"zz.png", *odd_names}


def test_each_image_says_why_it_is_there(suggest: Run, photos: Path, tmp_path: Path) -> None:
    """What it stands for, how dense its place is, and the nearest before it: in the table and on the page."""
    sheet = tmp_path / "sheet.html"
    told = json.loads(suggest(photos, "--budget", 6, "--sheet", sheet, "--json").stdout)
    suggested = told["suggested"]

    named = CliRunner().invoke(kinsight, ["suggest", "--help"]).stdout.partition("JSON keys:")[2]
    assert {*told, *suggested[0]} <= set(re.findall(r"\w+", named))
    assert sum(one["stands_for"] for one in suggested) == told["images"] == 60
    assert all(1 <= one["density_rank"] <= 60 for one in suggested)
    assert (suggested[0]["nearest"], suggested[0]["similarity"]) == (None, None)
    for place, one in enumerate(suggested[1:], start=1):
        assert one["nearest"] in [earlier["path"] for earlier in suggested[:place]]
        assert -1 <= one["similarity"] <= 1
    page = sheet.read_text()
    assert (
        f"stands for {suggested[0]['stands_for']} images; density rank {suggested[0]['density_rank']} of 60" in page
    )
    number = [one["path"] for one in suggested].index(suggested[-1]["nearest"]) + 1
    assert f"most like image {number} (similarity {suggested[-1]['similarity']:.2f})" in page


def test_trained_clusters_choose_too(suggest: Run, photos: Path) -> None:
    """As many different images, by the same seed the same."""
    once, again = (suggest(photos, "--budget", 5, "--method", "usl-t") for _ in range(2))
    assert once.exit_code == 0, once.stderr
    assert once.stdout == again.stdout
    assert len({row["path"] for row in csv.DictReader(io.StringIO(once.stdout))}) == 5
    assert "is not one of 'usl', 'usl-t'" in suggest(photos, "--budget", 5, "--method", "x").stderr


@pytest.mark.parametrize("kind", ["classes", "pairs"])
def test_what_is_labelled_is_not_suggested_again(suggest: Run, photos: Path, tmp_path: Path, kind: str) -> None:
    """Whatever the labels are; held-out images are left out of everything, and the budget is of the others."""
    first = [one["path"] for one in json.loads(suggest(photos, "--budget", 4, "--json").stdout)["suggested"]]
    table = tmp_path / "few.csv"
    rows = [f"{path},crow" for path in first] + ["gone.jpg,crow"]
    if kind == "pairs":
        rows = [f"{a},{b},different" for a, b in itertools.pairwise([*first, "gone.jpg"])]
    head = "path,class_id" if kind == "classes" else "path_a,path_b,relation"
    table.write_text("\n".join([head, *rows]) + "\n")
    done = suggest(photos, "--budget", 56, "--labels", table, "--json")
    told = json.loads(done.stdout)

    assert (told["images"], told["labelled"], len(told["suggested"])) == (60, 4, 56)
    assert not {one["path"] for one in told["suggested"]} & {*first}
    assert told["suggested"][0]["nearest"] in first
    assert "1 paths are not in" in done.stderr
    assert "it must be 1 to 56, the images in" in suggest(photos, "--budget", 57, "--labels", table).stderr


def test_images_kept_for_judging_are_left_out(suggest: Run, photos: Path, tmp_path: Path) -> None:
    """Neither suggested nor counted; those of the split rest are as if they had no label."""
    names = sorted(path.relative_to(photos).as_posix() for path in photos.rglob("*.*g"))
    splits = ["train", "test", "test", "rest"]
    table = tmp_path / "few.csv"
    table.write_text(
        "path,class_id,split\n"
        + "".join(f"{n},{i},{s}\n" for i, (n, s) in enumerate(zip(names, splits, strict=False)))
    )
    told = json.loads(suggest(photos, "--budget", 57, "--labels", table, "--json").stdout)
    assert (told["images"], told["labelled"]) == (58, 1)
    assert {one["path"] for one in told["suggested"]} == {*names[3:]}


def test_labels_that_can_not_be_read_are_one_line(suggest: Run, photos: Path, tmp_path: Path) -> None:
    """The error names the table and the line; with every image labelled, there is none to suggest."""
    table = tmp_path / "few.csv"
    names = sorted(path.relative_to(photos).as_posix() for path in photos.rglob("*.*g"))
    for text, said in (
        (f"path_a,path_b,relation\n{names[0]},{names[1]},akin\n", "line 2: relation is 'akin'"),
        (f"path,class_id\n{names[0]},a\n{names[0]},b\n", "line 3"),
        ("path,class_id\n" + "".join(f"{name},a\n" for name in names), "all images in"),
    ):
        table.write_text(text)
        done = suggest(photos, "--budget", 3, "--labels", table)
        assert done.exit_code == 1
        (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert said in line


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--budget", 61], 1, "the budget is 61; it must be 1 to 60"),
        (["--budget", 0], 2, "0 is not in the range"),
        ([], 2, "Missing option '--budget'"),
    ],
    ids=["above", "zero", "none"],
)
def test_a_budget_that_can_not_be_spent_is_refused(
    suggest: Run, photos: Path, words: list[object], code: int, said: str
) -> None:
    """Before any image is read, with the number that there are."""
    done = suggest(photos, *words)
    assert done.exit_code == code
    assert said in done.stderr
