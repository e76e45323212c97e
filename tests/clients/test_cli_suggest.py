"""`kinsight suggest`: a table to fill in, and a page to label on."""

import base64
import csv
import hashlib
import io
import json
import os
import re
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
    assert [set(row) for row in rows] == [{"path", "class_id"}] * 7
    assert {row["class_id"] for row in rows} == {""}
    assert len({row["path"] for row in rows}) == 7
    table = tmp_path / "to_label.csv"
    table.write_text(done.stdout)
    with pytest.raises(LabelsError, match="none of its 7 rows has a class_id"):
        read_labels(table, open_collection(photos), to_teach=True)
    table.write_text(done.stdout.replace(",\n", ",crow\n"))
    assert len(read_labels(table, open_collection(photos), to_teach=True).class_of) == 7
    assert suggest(photos, "--budget", 7).stdout == done.stdout


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
    assert page.fields == told["suggested"]
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
    told = json.loads(suggest(photos, "--budget", 62, "--json").stdout)
    assert (told["images"], len(told["suggested"])) == (60, 60)
    assert {skipped["item"] for skipped in told["skipped"]} == {"zz.png", "%FF.png"}


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
