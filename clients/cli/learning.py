"""Learning within a rebuild: training in a process of its own, which nothing else depends on.

LearningError   the training failed or was refused; the message is its own
"""

import json
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clients.cli.options import Device
from clients.cli.output import Progress, printable, tell

if TYPE_CHECKING:
    from indexer.learning import Lesson

STOP_TIMEOUT_S = 30.0  # for a training that was interrupted to write its checkpoint


class LearningError(Exception):
    """Training within a rebuild failed or was refused; the index is as it was.

    Attributes:
        error_types: of what it failed of in its own process, as `indexer.operations.types_of` has them.
    """

    def __init__(self, message: str, error_types: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.error_types = tuple(error_types)


def learn(
    lesson: "Lesson",
    store: Path,
    few_labels: Path | None,
    settings: Sequence[str],
    device: Device,
    memory_bytes: int | None,
    report: Progress,
    warn: Callable[[str], None],
) -> str:
    """Train on from a lesson's model with its images, or go on with the run that an interrupted rebuild left.

    Args:
        lesson: what to learn.
        store: gets the model.
        few_labels: the table that the lesson's labels were made of; None where it learns without.
        settings: words for `kinsight train`, or `finetune` where the lesson has labels, such as --epochs 2.
        device: where to compute, also where a run is gone on with.
        memory_bytes: most that the training may allocate; None for no limit.
        report: hears the stages of training, after the word `learn`.
        warn: hears what training finds wrong, at once, after the same word.

    Returns:
        The id of the model that was learned.

    Raises:
        LearningError: training failed, or another one runs in this store.
    """
    if lesson.model:
        return lesson.model
    begun = (store / "runs" / lesson.run / "recipe.toml").exists()
    words = ["--resume", lesson.run] if begun else ["--run", lesson.run, *settings]
    if lesson.labels:
        # Nothing in a rebuild asks what labels alone would teach, which takes as long again.
        verb = ["finetune", lesson.start, str(lesson.images), "--labels", str(lesson.labels), "--no-baselines"]
    else:
        verb = ["train", str(lesson.images), *([] if begun else ["--from", lesson.start])]
    place = ["--device", device, "--store", str(store), "--progress", "json", "--json"]
    names = {str(lesson.labels): printable(str(few_labels)), str(lesson.images): f"index {lesson.index}"}
    model = _train([*verb, *words, *place], store, names, memory_bytes, report, warn)
    lesson.learned(model)
    return model


def _train(
    words: Sequence[str],
    store: Path,
    names: Mapping[str, str],
    memory_bytes: int | None,
    report: Progress,
    warn: Callable[[str], None],
) -> str:
    # -P: what lies in this folder is not ours, whatever it is called.
    command = [sys.executable, "-P", "-m", "clients.cli.tethered", str(store), *words]
    with (
        tempfile.TemporaryFile("w+") as printed,
        subprocess.Popen(  # noqa: S603  our own command
            command,
            stdin=subprocess.PIPE,  # its tether: it ends when this process does, however that ends
            stdout=printed,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",  # what libraries print may be in any encoding
            start_new_session=True,  # Ctrl-C reaches it once, from here
        ) as process,
        _ended(process),
    ):
        _restrain(process.pid, memory_bytes)
        last, error_types = _follow(process, names, report, warn)
        if process.wait() != 0:
            raise LearningError(f"learning failed, {_ended_with(process.returncode, last)}", error_types)
        printed.seek(0)
        return str(json.load(printed)["model"])


def _restrain(pid: int, memory_bytes: int | None) -> None:
    """Put the training behind everything else, before it has begun."""
    from indexer.priority import put_behind

    put_behind(pid)
    if memory_bytes is not None:
        _, most = resource.prlimit(pid, resource.RLIMIT_DATA)  # as it was started; only root may raise it
        limit = memory_bytes if most == resource.RLIM_INFINITY else min(memory_bytes, most)
        resource.prlimit(pid, resource.RLIMIT_DATA, (limit, limit))


def _follow(
    process: "subprocess.Popen[str]", names: Mapping[str, str], report: Progress, warn: Callable[[str], None]
) -> tuple[str, Sequence[str]]:
    """Pass on what the training says until it ends; returns its last line for people, and of which error it failed.

    It knows our tables alone: in what it says of them, `names` has what people call them.
    """
    last, error_types = "", list[str]()
    assert process.stderr is not None  # noqa: S101  a pipe was asked for
    for line in process.stderr:
        told = _for_programs(line)
        if "stage" in told:
            report(f"learn: {told['stage']}", int(told["done"]), int(told["total"]))
        elif "warning" in told:
            warn(f"learn: {_by_names(told['warning'], names)}")
        elif "error_types" in told:
            error_types = told["error_types"]
        elif line.strip():
            last = _by_names(line.strip(), names)
            tell(f"learn: {last}")
    return last.removeprefix("error: "), error_types


def _by_names(text: str, names: Mapping[str, str]) -> str:
    for table, name in names.items():
        text = text.replace(table, name)
    return text


def _for_programs(line: str) -> Mapping[str, Any]:
    """What a line tells of progress, of what is wrong, or of the error at the end; nothing where it is for people."""
    try:
        told = json.loads(line)
    except ValueError:
        return {}
    return told if isinstance(told, dict) else {}


def _ended_with(code: int, last: str) -> str:
    if code >= 0:
        return f"exit code {code}: {last or 'it said nothing'}"
    # What it said last is a warning at most: it had no time to say what ended it.
    memory = ", as the system does where memory runs out" if code == -signal.SIGKILL else ""
    killed = f"its process was killed by signal {-code} ({signal.strsignal(-code)})"
    return f"{killed}{memory}; the same again goes on where it was"


@contextmanager
def _ended(process: "subprocess.Popen[str]") -> Iterator[None]:
    """Leave no training behind: an interrupted one gets the time to keep what it has."""
    try:
        yield
    except BaseException:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
        raise
