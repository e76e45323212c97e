"""What works behind others is behind them, however the system shares its processor."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from indexer import priority
from indexer.priority import OOM_SCORE, put_behind

OWN = os.getpriority(os.PRIO_PROCESS, 0)  # which nobody but root can lower
NICENESS = max(7, OWN)


@pytest.fixture(autouse=True)
def known_niceness(monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers that other tests keep running in this process have set it to none, for speed."""
    monkeypatch.setattr(priority, "NICENESS", NICENESS)


@contextmanager
def sleeping(*, session: bool) -> Iterator[int]:
    """A process of its own, in a session of its own if so wanted."""
    with subprocess.Popen(["sleep", "60"], start_new_session=session) as process:
        try:
            yield process.pid
        finally:
            process.kill()


def test_niceness_and_memory() -> None:
    with sleeping(session=False) as pid:
        put_behind(pid)
        assert Path(f"/proc/{pid}/stat").read_text().rsplit(")")[-1].split()[16] == str(NICENESS)
        assert int(Path(f"/proc/{pid}/oom_score_adj").read_text()) >= OOM_SCORE


def shares_among_sessions() -> bool:
    with sleeping(session=True) as pid:
        group = Path(f"/proc/{pid}/autogroup")
        return group.exists() and group.read_text() != ""


@pytest.mark.skipif(not shares_among_sessions(), reason="sessions don't share the processor here")
def test_a_session_of_its_own_is_put_behind_as_a_whole() -> None:
    """Niceness counts only within a session: a training took half of a core from the server beside it."""
    own = Path("/proc/self/autogroup").read_text()
    with sleeping(session=True) as pid:
        put_behind(pid)
        assert Path(f"/proc/{pid}/autogroup").read_text().split()[1:] == ["nice", str(NICENESS)]
    with sleeping(session=False) as pid:
        put_behind(pid)
    assert Path("/proc/self/autogroup").read_text() == own  # where it is shared, it is left alone


def test_a_process_that_has_ended_is_nothing_to_put_behind() -> None:
    with sleeping(session=True) as pid:
        pass
    put_behind(pid)


@pytest.mark.parametrize(("theirs", "own"), [("", ""), ("", "/autogroup-7 nice 0\n"), ("/autogroup-8 nice 0\n", "")])
def test_the_session_that_the_system_began_with_is_no_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, theirs: str, own: str
) -> None:
    """Linux has an empty line for it: what a container's first process started could not rebuild an index."""
    monkeypatch.setattr(priority, "PROC", tmp_path)
    with sleeping(session=True) as pid:
        for of, group in ((str(pid), theirs), ("self", own)):
            (tmp_path / of).mkdir()
            (tmp_path / of / "autogroup").write_text(group)
            (tmp_path / of / "oom_score_adj").touch()  # nor does every system that takes Linux's place fill this one
        put_behind(pid)
        assert os.getpriority(os.PRIO_PROCESS, pid) == NICENESS
    assert (tmp_path / str(pid) / "autogroup").read_text() == (str(NICENESS) if theirs else "")


def test_a_system_that_refuses_ends_no_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(priority, "PROC", tmp_path)
    with sleeping(session=True) as pid:
        for of in (str(pid), "self"):
            (tmp_path / of / "autogroup").mkdir(parents=True)  # what can be neither read nor written
        put_behind(pid)
        assert os.getpriority(os.PRIO_PROCESS, pid) == NICENESS
