"""A run's directory: its resolved recipe, written before the first step, and the way to go on after a stop."""

import csv
import io
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path

from indexer.locks import Held, hold
from indexer.manifest import MANIFEST, write_atomically
from trainer.recipe import Recipe, load, to_toml
from trainer.recipe_files import RecipeError

RECIPE = "recipe.toml"
SKIPPED = "skipped.csv"  # item and reason of each skipped image

FINISHED = "finished.json"
_LABELS = "labels.json"
_LOCK = ".process"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")


class RunError(ValueError):
    """A run can't be started or resumed as asked; the message says why."""


class RunFinished(RunError):
    """A run that is to go on is at its end.

    Attributes:
        run: its directory.
        model: id of the model that it registered.
    """

    def __init__(self, run: Path, model: str):
        super().__init__(f"run {run.name!r} is finished: its model is {model}; start a new run to learn more")
        self.run, self.model = run, model


class RunStopped(OSError):
    """The disk is full or fails; the run keeps what it has written and can be resumed."""


def new_run(
    runs: Path, recipe: Recipe, name: str | None = None, *, teach: bool = False, keep_doubted: bool = False
) -> Path:
    """The directory of a run that begins, with its recipe in it; raises RunError where the name can't be had.

    Args:
        runs: the store's directory of runs.
        recipe: what it learns with.
        name: 1 to 100 characters; made of the time, the objective and the seed where it is not given.
        teach: whether it learns from labels.
        keep_doubted: whether also from those that are likely wrong.
    """
    if name is None:
        stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S-%f")[:-3]
        name = f"{stamp}-{recipe.objective.name}-seed{recipe.run.seed}"
    if not _NAME.fullmatch(name):
        raise RunError(f"{name!r} can't name a run; 1 to 100 of A-Z, a-z, 0-9, ., _ and -, beginning with none of .-")
    run = runs / name
    if (run / RECIPE).exists():
        raise RunError(f"there is a run {name!r} in {runs}; go on with it by --resume {name}, or name another")
    run.mkdir(parents=True, exist_ok=True)  # one that was stopped before it had its recipe is not begun
    write_atomically(run / _LABELS, json.dumps({"teach": teach, "keep_doubted": keep_doubted}).encode())
    write_atomically(run / RECIPE, to_toml(recipe).encode())
    return run


def resume_run(runs: Path, name: str, models: Path) -> Path:
    """The directory of a run that goes on.

    Raises:
        RunError: there is none of this name.
        RunFinished: it is at its end, and the store still has the model that it registered.
    """
    run = runs / name
    if not (run / RECIPE).is_file():
        known = sorted(path.parent.name for path in runs.glob(f"*/{RECIPE}"))
        raise RunError(f"no run {name!r} in {runs}; it has: {', '.join(known) or 'none'}")
    if (run / FINISHED).exists():
        model = str(json.loads((run / FINISHED).read_bytes())["model"])
        if (models / model / MANIFEST).exists():  # else it is exported again, from the last checkpoint
            raise RunFinished(run, model)
    return run


def doubted_are_kept(run: Path, *, teach: bool, keep_doubted: bool) -> bool:
    """Whether a run that goes on learns from labels that are likely wrong, which it does where it began so.

    Raises:
        RunError: it began without labels and is to go on with them, or the other way; or it began without those that
            are likely wrong and is to keep them.
    """
    if not (run / _LABELS).exists():  # of an older Kinsight, which did not note it
        return keep_doubted
    begun = json.loads((run / _LABELS).read_bytes())
    if begun["teach"] and not teach:
        raise RunError(
            f"run {run.name!r} learns from labels: go on by `kinsight finetune`, with the model, the images and the "
            f"--labels that it began with, and --resume {run.name}"
        )
    if teach and not begun["teach"]:
        raise RunError(f"run {run.name!r} learns without labels: go on by `kinsight train`, or start a new run")
    if keep_doubted and not begun["keep_doubted"]:
        raise RunError(
            f"run {run.name!r} began without --keep-doubted and goes on as it began; leave it out, or start a new run"
        )
    return bool(begun["keep_doubted"])


def finish_run(run: Path, model: str) -> None:
    """Note that a run has come to its end, which was this model."""
    write_atomically(run / FINISHED, json.dumps({"model": model}).encode())


@contextmanager
def sole_process(run: Path) -> Iterator[None]:
    """Hold a run: two processes would remove each other's checkpoints; raises RunError, naming who holds it."""
    with ExitStack() as stack:
        try:
            stack.enter_context(hold(run / _LOCK))
        except Held as error:
            raise RunError(
                f"process {error.pid} is at work on run {run.name!r} already; wait for it or end it"
            ) from error
        yield


@contextmanager
def told_how_to_go_on(run: Path) -> Iterator[None]:
    """Within, a disk that fails raises RunStopped, which names the command that goes on."""
    try:
        yield
    except OSError as error:
        what = f"{error.filename}: {error.strerror}" if error.filename is not None else error.strerror or error
        raise RunStopped(f"{what}; free some space or mend that, and go on with --resume {run.name}") from error


def recipe_of(run: Path) -> Recipe:
    """What a run learns with; raises RunError where the file is damaged."""
    try:
        return load(run / RECIPE)
    except RecipeError as error:
        raise RunError(f"{run / RECIPE} is damaged, start a new run: {error}") from error


def list_skipped(run: Path, skipped: Sequence[tuple[str, str]]) -> Path:
    """Write the table of a run's skipped images, (item, reason); there is no such file where none was skipped."""
    path = run / SKIPPED
    if not skipped:
        path.unlink(missing_ok=True)  # of a process before this one, which may have found some
        return path
    rows = io.StringIO(newline="")
    csv.writer(rows).writerows([("item", "reason"), *skipped])
    write_atomically(path, rows.getvalue().encode(errors="backslashreplace"))
    return path


def forget_pixels(run: Path) -> None:
    """Remove the decoded pixels of a finished run: by far its largest files, and made again by decoding."""
    for file in (*run.glob("*.u8"), *(path.with_suffix(".json") for path in run.glob("*.u8"))):
        file.unlink()
