"""Processes that work behind others: they take what is left of the processor, and go first where memory runs out."""

import os
from contextlib import suppress
from pathlib import Path

NICENESS = 10
OOM_SCORE = 500  # as /proc/PID/oom_score_adj has it: in permille of the memory, added to what a process holds
PROC = Path("/proc")  # macOS has none: there niceness is all there is


def put_behind(pid: int) -> None:
    """Put a process behind this one and all others, as far as the system lets it; one that has ended needs nothing.

    A system that refuses (by a read-only /proc, say) has the work beside others instead: slower, and no reason to
    end it.
    """
    for put in (_put_itself_behind, _put_memory_behind, _put_session_behind):
        with suppress(OSError, ValueError):  # the second where it has such a file, and nothing or else in it
            put(pid)


def _put_itself_behind(pid: int) -> None:
    # Never before this one, which may have been put behind others itself.
    os.setpriority(os.PRIO_PROCESS, pid, max(NICENESS, os.getpriority(os.PRIO_PROCESS, 0)))


def _put_memory_behind(pid: int) -> None:
    own = int((PROC / "self/oom_score_adj").read_text())
    (PROC / str(pid) / "oom_score_adj").write_text(str(max(OOM_SCORE, own)))


def _put_session_behind(pid: int) -> None:
    """Where Linux shares the processor among sessions, niceness counts only within one: so that of a session too."""
    theirs, own = PROC / str(pid) / "autogroup", PROC / "self/autogroup"
    # "/autogroup-123 nice 0"; empty for processes of the session that the system began with, which is no such group.
    # A container's first process and what it starts may be in it.
    group = theirs.read_text().split(" ")[0]
    if group and group != own.read_text().split(" ")[0]:  # within one session niceness does it
        theirs.write_text(str(NICENESS))  # refused to all but root within a tenth of a second after another change
