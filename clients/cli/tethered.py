"""`python -m clients.cli.tethered STORE WORDS`: a training that ends with the process that started it.

It holds the store's only place for learning as long as it lives, and is killed when its standard input ends: whoever
started it holds the other end, and so lets go of it even when killed. The run's checkpoint is what is gone on from.
"""

import os
import signal
import sys
import threading
from pathlib import Path

from clients.cli.command import Failure, kinsight
from clients.cli.training import TETHERED


def main(store: Path, words: list[str]) -> None:
    """Run a verb as the store's only training; exits with the verb's code."""
    from indexer.staging import LearningInProgress, sole_learner

    threading.Thread(target=_die_with_starter, daemon=True).start()
    try:
        with sole_learner(store):
            kinsight(words, prog_name="kinsight", obj=TETHERED)
    except LearningInProgress as error:
        Failure(str(error)).show()
        sys.exit(Failure.exit_code)


def _die_with_starter() -> None:
    while os.read(0, 1):  # not sys.stdin, whose lock the end of a process waits for
        pass
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
