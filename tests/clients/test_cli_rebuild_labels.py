"""What `kinsight rebuild --finetune` says of a table of few labels."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from clients.cli.command import kinsight
from indexer import operations
from tests.conftest import School, copied


@pytest.mark.slow
def test_few_labels_are_told_of_by_their_own_name(learned_school: School, tmp_path: Path) -> None:
    """Not by that of the copy in the store that is learned from; and it learns as was asked."""
    school = copied(learned_school, tmp_path)
    few = tmp_path / "few.csv"

    def run(*words: object) -> Result:
        return CliRunner().invoke(kinsight, [*map(str, words), "--device", "cpu", "--store", str(school.store.root)])

    assert run("index", "build", "photos", school.pictures, "--model", school.model).exit_code == 0
    few.write_text("path,class_id\n00.png,a\n04.png,a\n")
    failed = run("rebuild", "photos", "--finetune", few)
    assert f"error: learning failed, exit code 1: {few}: its 2 images to learn from are of 1 class" in failed.stderr
    few.write_text("path,class_id\n00.png,a\n01.png,b\ngone.png,b\n06.png,\n")
    done = run("rebuild", "photos", "--finetune", few, "--method", "supervised", "--epochs", 1, "--keep-doubted")
    lines = done.stderr.splitlines()
    (unknown,) = [number for number, line in enumerate(lines) if "gone.png" in line]
    left_out = f"warning: learn: left out, as not in index photos: 1 of the paths of {few}, for example gone.png; "
    assert lines[unknown].startswith(left_out)
    assert lines[unknown + 1].startswith(f"warning: learn: {few}: 1 rows have no class_id")
    assert unknown + 1 < next(number for number, line in enumerate(lines) if line.startswith("learn: decode"))
    assert ".learning" not in done.stderr
    *_, recorded = operations.list_operations(school.store.operations)
    assert [f"warning: {warning}" for warning in recorded.warnings[:2]] == lines[unknown : unknown + 2]
    assert tuple(recorded.result["warnings"][:2]) == recorded.warnings[:2]
    *_, last = sorted(school.store.runs.glob("*-photos-*/labels.json"))
    assert json.loads(last.read_bytes()) == {"teach": True, "keep_doubted": True}
