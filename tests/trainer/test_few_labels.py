"""The benchmark of a few labels, whole, on small pictures."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from clients.cli.command import kinsight
from tests.benchmarks import few_labels


def test_a_draw_comes_again_and_smaller_ones_are_within_larger() -> None:
    """So many of each class, the same for a seed, and 5 a class hold the 2 a class of that seed."""
    pool = [(Path(f"{number}.png"), str(number % 3)) for number in range(30)]
    drawn = [set(few_labels.some_of_each(pool, count, random.Random(4))) for count in (2, 2, 5, 50)]
    assert drawn[0] == drawn[1]
    assert drawn[0] < drawn[2]
    assert [len(found) for found in drawn] == [6, 6, 15, 30]
    assert drawn[0] != set(few_labels.some_of_each(pool, 2, random.Random(5)))


@pytest.mark.slow
def test_the_whole_benchmark_has_its_table_and_makes_no_cell_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each method on each draw, beside the frozen backbone and the model; the second call learns nothing."""
    rng = np.random.default_rng(3)
    rows = ["path,class_id,split"]
    (tmp_path / "pictures").mkdir()
    for number in range(36):
        picture = Image.fromarray(rng.integers(0, 60, (32, 32, 3)).astype(np.uint8) + np.uint8(30 * (number % 6)))
        picture.save(tmp_path / "pictures" / f"{number:02d}.png")
        rows.append(f"{number:02d}.png,{number % 6},{'train' if number % 6 < 4 else 'test'}")
    labels, store = tmp_path / "labels.csv", tmp_path / "store"
    labels.write_text("\n".join(rows) + "\n")
    tiny = ("--backbone", "test_resnet", "--weights", "none", "--dim", "8", "--size", "32", "--epochs", "1")
    settings = ("--set", "run.batch_size=10", "--set", "run.least_steps=1")
    words = ["train", tmp_path / "pictures", *tiny, *settings, "--store", store, "--json"]
    model = json.loads(CliRunner().invoke(kinsight, list(map(str, words))).stdout)["model"]

    command = [str(tmp_path / "pictures"), "--labels", str(labels), "--store", str(store), "--model", model]
    command += ["--out", str(tmp_path / "out"), "--seeds", "0", "1", "--per-class", "2", "--budgets", "8"]
    command += ["--methods", "labels_alone", "supervised", "stml_semi", "--set", "run.epochs=1"]
    few_labels.main(command)
    first = capsys.readouterr().out
    written = {file: file.stat().st_mtime_ns for file in (tmp_path / "out" / "results").iterdir()}
    few_labels.main(command)

    assert len(written) == 2 * 3 * 3
    assert {file: file.stat().st_mtime_ns for file in written} == written
    assert capsys.readouterr().out == first
    lines = [line.split(" | ") for line in first.splitlines() if line.startswith("| ")]
    assert [line[0] for line in lines[2::5]] == ["| 2 a class", "| 8 by random", "| 8 by usl"]
    assert [line[1] for line in lines[2:7]] == ["frozen", "stml", "labels_alone", "supervised", "stml_semi"]
    assert all(" ± " in line[2] for line in lines[2:])

    every = [*command[: command.index("--seeds")], "--seeds", "0", "--per-class", "100", "--budgets"]
    few_labels.main([*every, "--wrong", "0.25", "--keep-doubted", "--methods", "supervised", "--set", "run.epochs=1"])
    rest = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| 100 a class, 25% wrong")]
    assert len(rest) == 3
    assert all(line.endswith(" | – | – |") for line in rest)
    right = {str(tmp_path / "pictures" / name): of for name, of, _ in (row.split(",") for row in rows[1:])}
    told = [row.split(",") for row in (tmp_path / "out/per-class-100-seed0-wrong0.25.csv").read_text().splitlines()]
    assert sum(right[path] != of for path, of, _ in told[1:]) == 6  # of 24 labels
    assert all(right[path] == of for path, of, split in told[1:] if split == "test")
