"""`python -m clients.cli.tethered STORE WORDS`: a training that ends with the process that started it.

It holds the store's only place for learning as long as it lives, and is killed when its standard input ends: whoever
started it holds the other end, and so lets go of it even when killed. The run's checkpoint is what is gone on from.
What it failed of is told on stderr, as progress is: a line of {error_types}, for the record of the whole.
"""

import json
import os
import signal
import sys
import threading
from pathlib import Path

import click

from clients.cli.command import Failure, kinsight
from clients.cli.training import TETHERED


def main(store: Path, words: list[str]) -> None:
    """Run a verb as the store's only training; exits with the verb's code."""
    from indexer.operations import types_of
    from indexer.staging import LearningInProgress, sole_learner

    threading.Thread(target=_die_with_starter, daemon=True).start()
    try:
        with sole_learner(store):
            sys.exit(kinsight(words, prog_name="kinsight", obj=TETHERED, standalone_mode=False))
    except (LearningInProgress, click.ClickException) as error:
        failure = error if isinstance(error, click.ClickException) else Failure(str(error))
        click.echo(json.dumps({"error_types": types_of(failure.__cause__ or error)}), err=True)
        failure.show()
        sys.exit(failure.exit_code)


def _die_with_starter() -> None:
    while os.read(0, 1):  # not sys.stdin, whose lock the end of a process waits for
        pass
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
