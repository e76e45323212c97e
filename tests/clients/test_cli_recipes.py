"""`kinsight recipes`: what ships is listed, with what it was measured to reach."""

import json
from dataclasses import asdict, fields
from pathlib import Path

import pytest
from click.testing import CliRunner

from clients.cli.command import kinsight
from trainer import recipe_files
from trainer.recipe import load
from trainer.recipe_files import Measured, RecipeError, about, names

MEASURED = """
description = "For birds"

[[measured]]
data = "birds"
seed = 3
commit = "0123abc"
hardware = "2 cores"
command = "kinsight train birds --recipe mine"
seconds = 90
frozen_recall_at_1 = 0.25
recall_at_1 = 0.5
frozen_map_at_r = 0.125
map_at_r = 0.375

[run]
epochs = 7
"""


def run(*words: str) -> str:
    result = CliRunner().invoke(kinsight, ["recipes", *words])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_every_recipe_is_listed_with_its_description() -> None:
    """The list has each recipe that ships, and each says in one sentence what it is for."""
    listed = json.loads(run("--json"))["recipes"]
    assert names() == [entry["name"] for entry in listed]
    assert [entry["name"] for entry in listed if len(entry["description"]) < 20] == []
    printed = run()
    assert [entry["name"] for entry in listed if f"{entry['name']} " not in printed] == []


def test_measured_figures_are_shown_as_the_file_has_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run in a recipe's file is one row of the table, and whole in the JSON object."""
    (tmp_path / "mine.toml").write_text(MEASURED)
    monkeypatch.setattr(recipe_files, "_FOLDER", tmp_path)
    (entry,) = json.loads(run("--json"))["recipes"]
    assert [asdict(measured) for measured in about("mine").measured] == entry["measured"]
    assert {field.name for field in fields(Measured)} == set(entry["measured"][0])
    row = next(line for line in run().splitlines() if "0.2500" in line)
    assert row.split() == ["mine", "birds", "3", "0.2500", "0.5000", "0.1250", "0.3750", "1.5"]


def test_what_a_file_says_of_its_recipe_is_no_part_of_it(tmp_path: Path) -> None:
    """Description and measured runs change no value that is trained with."""
    told, plain = tmp_path / "told.toml", tmp_path / "plain.toml"
    told.write_text(MEASURED)
    plain.write_text("[run]\nepochs = 7\n")
    assert load(plain) == load(told)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("seed = 3", ""), r"\[\[measured\]\] lacks seed"),
        (("seed = 3", "sead = 3"), "lacks seed"),
        (("seed = 3", "seed = 3\nsead = 3"), "did you mean 'seed'"),
        (("seed = 3", "seed = 0.5"), "measured.seed is 0.5; it must be of type int"),
        (("[[measured]]", "[measured]"), r"one table for each run, \[\[measured\]\]"),
        (('"For birds"', "3"), "description is 3; it must be of type str"),
    ],
)
def test_a_measured_run_that_can_not_be_repeated_is_refused(
    change: tuple[str, str], message: str, tmp_path: Path
) -> None:
    """Where a key is missing, misspelt or of another type, loading says which."""
    file = tmp_path / "mine.toml"
    file.write_text(MEASURED.replace(*change))
    with pytest.raises(RecipeError, match=message):
        load(file)
