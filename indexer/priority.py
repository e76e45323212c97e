"""Processes that work behind others: they take what is left of the processor, and go first where memory runs out."""

import os
from contextlib import suppress
from pathlib import Path

NICENESS = 10
OOM_SCORE = 500  # as /proc/PID/oom_score_adj has it: in permille of the memory, added to what a process holds


def put_behind(pid: int) -> None:
    """Put a process behind this one and all others; of one that has ended already, nothing is left to put."""
    with suppress(ProcessLookupError, FileNotFoundError):
        # Never before this one, which may have been put behind others itself.
        os.setpriority(os.PRIO_PROCESS, pid, max(NICENESS, os.getpriority(os.PRIO_PROCESS, 0)))
        own = int(Path("/proc/self/oom_score_adj").read_text())
        Path(f"/proc/{pid}/oom_score_adj").write_text(str(max(OOM_SCORE, own)))
        _put_session_behind(pid)


def _put_session_behind(pid: int) -> None:
    """Where Linux shares the processor among sessions, niceness counts only within one: so that of a session too."""
    theirs, own = Path(f"/proc/{pid}/autogroup"), Path("/proc/self/autogroup")
    # "/autogroup-123 nice 0"
    if not theirs.exists() or theirs.read_text().split()[0] == own.read_text().split()[0]:
        return  # in a session with this process niceness does it
    with suppress(BlockingIOError):  # less than a tenth of a second after another change, only root's are taken
        theirs.write_text(str(NICENESS))
