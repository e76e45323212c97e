"""Batcher."""

import asyncio
import threading
from collections.abc import Sequence

import pytest

from server.batching import Batcher

Outcome = int | Exception


class Doubling:
    """Doubles numbers; waits in every batch until it is let on, and remembers the batches."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.entered = threading.Semaphore(0)
        self.go_on = threading.Semaphore(0)

    def run(self, jobs: Sequence[int]) -> list[Outcome]:
        self.batches.append(list(jobs))
        self.entered.release()
        assert self.go_on.acquire(timeout=5)
        return [ValueError("odd") if job % 2 else 2 * job for job in jobs]


async def _entered(doubling: Doubling) -> None:
    assert await asyncio.to_thread(doubling.entered.acquire, timeout=5)


def test_jobs_that_wait_for_a_busy_worker_are_run_together() -> None:
    """A lone job starts at once; what arrives meanwhile is one batch, up to the limit, in order."""
    doubling = Doubling()

    async def body() -> list[int]:
        batcher = Batcher[int, int]("test", doubling.run, workers=1, max_batch=3)
        first = batcher.submit(0)
        await _entered(doubling)
        rest = [batcher.submit(job) for job in (2, 4, 6, 8)]
        doubling.go_on.release(3)
        answers = await asyncio.gather(first, *rest)
        await batcher.close()
        return list(answers)

    assert asyncio.run(body()) == [0, 4, 8, 12, 16]
    assert doubling.batches == [[0], [2, 4, 6], [8]]


def test_a_cancelled_job_is_dropped_before_it_is_batched() -> None:
    """A client that left costs no work."""
    doubling = Doubling()

    async def body() -> int:
        batcher = Batcher[int, int]("test", doubling.run, workers=1, max_batch=8)
        first = batcher.submit(0)
        await _entered(doubling)
        left, stayed = batcher.submit(2), batcher.submit(4)
        left.cancel()
        doubling.go_on.release(2)
        await first
        answer = await stayed
        await batcher.close()
        return answer

    assert asyncio.run(body()) == 8
    assert doubling.batches == [[0], [4]]


def test_one_job_that_fails_does_not_fail_the_others_of_its_batch() -> None:
    """An exception in a job's place is that job's."""
    doubling = Doubling()

    async def body() -> list[int | BaseException]:
        batcher = Batcher[int, int]("test", doubling.run, workers=1, max_batch=8)
        first = batcher.submit(0)
        await _entered(doubling)
        rest = [batcher.submit(job) for job in (1, 2)]
        doubling.go_on.release(2)
        answers = await asyncio.gather(first, *rest, return_exceptions=True)
        await batcher.close()
        return list(answers)

    _, failed, answered = asyncio.run(body())
    assert isinstance(failed, ValueError)
    assert answered == 4
    assert doubling.batches == [[0], [1, 2]]


def test_a_job_that_is_cancelled_while_its_batch_runs_leaves_the_others() -> None:
    """A client that left takes no answer from those beside it."""
    doubling = Doubling()

    async def body() -> int:
        batcher = Batcher[int, int]("test", doubling.run, workers=1, max_batch=8)
        batcher.submit(0)
        await _entered(doubling)
        left, stayed = batcher.submit(2), batcher.submit(4)
        doubling.go_on.release()
        await _entered(doubling)
        left.cancel()
        doubling.go_on.release()
        answer = await asyncio.wait_for(stayed, 5)
        await batcher.close()
        return answer

    assert asyncio.run(body()) == 8
    assert doubling.batches == [[0], [2, 4]]


def test_a_batch_that_fails_fails_its_jobs_and_the_worker_goes_on() -> None:
    """An exception that is raised reaches every caller of the batch, and no later one."""

    def run(jobs: Sequence[int]) -> list[Outcome]:
        if 0 in jobs:
            raise RuntimeError("broken")
        return list(jobs)

    async def body() -> int:
        batcher = Batcher[int, int]("test", run, workers=1, max_batch=8)
        with pytest.raises(RuntimeError, match="broken"):
            await batcher.submit(0)
        answer = await batcher.submit(7)
        await batcher.close()
        return answer

    assert asyncio.run(body()) == 7


def test_closing_ends_every_worker_after_the_jobs_that_wait() -> None:
    """No job is lost and no thread left."""
    doubling = Doubling()

    async def body() -> list[int]:
        batcher = Batcher[int, int]("closing", doubling.run, workers=3, max_batch=2)
        jobs = [batcher.submit(job) for job in range(0, 20, 2)]
        doubling.go_on.release(100)
        await batcher.close()
        return list(await asyncio.gather(*jobs))

    assert asyncio.run(body()) == list(range(0, 40, 4))
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("closing")] == []
