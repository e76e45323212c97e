"""Work that blocks, taken off the event loop and done together with whatever else waits for the same thing."""

import asyncio
import threading
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

Job = TypeVar("Job")
Answer = TypeVar("Answer")

CLOSE_TIMEOUT_S = 5.0


class Batcher(Generic[Job, Answer]):
    """Runs jobs of the event loop on worker threads, in batches.

    An idle worker takes everything that waits, up to `max_batch`, and runs it as one call. There is no delay to
    collect a batch: alone a job starts at once, and under load batches form by themselves while the workers are
    busy. The event loop is woken once a batch, not once a job.

    A job whose future was cancelled (the client left, or its deadline passed) is dropped before it is batched.
    """

    def __init__(
        self,
        name: str,
        run: Callable[[Sequence[Job]], Sequence[Answer | Exception]],
        *,
        workers: int,
        max_batch: int,
    ) -> None:
        """Starts the workers; must be called on the event loop that submits.

        Args:
            name: of the threads.
            run: a batch of jobs in, as many answers out in the same order; called on the workers. An exception
                in a job's place fails that job, one that is raised fails the whole batch.
            workers: number of threads, which is how many batches run at a time.
            max_batch: most jobs in a batch.
        """
        self._run = run
        self._max_batch = max_batch
        self._loop = asyncio.get_running_loop()
        self._waiting: SimpleQueue[tuple[Job, asyncio.Future[Answer]] | None] = SimpleQueue()
        self._threads = [
            threading.Thread(target=self._work, name=f"{name}-{number}", daemon=True) for number in range(workers)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, job: Job) -> asyncio.Future[Answer]:
        """The future answer to a job; cancel it to drop the job."""
        future: asyncio.Future[Answer] = self._loop.create_future()
        self._waiting.put((job, future))
        return future

    async def close(self) -> None:
        """End the workers after the jobs that wait; a worker that is stuck in a batch is left behind."""
        for _ in self._threads:
            self._waiting.put(None)
        for thread in self._threads:
            await asyncio.to_thread(thread.join, CLOSE_TIMEOUT_S)

    def _work(self) -> None:
        while (first := self._waiting.get()) is not None:
            taken = [first, *self._take(self._max_batch - 1)]
            live = [(job, future) for job, future in taken if not future.cancelled()]
            if live:
                answers = self._answers([job for job, _ in live])
                self._loop.call_soon_threadsafe(_deliver, [future for _, future in live], answers)

    def _take(self, most: int) -> list[tuple[Job, asyncio.Future[Answer]]]:
        taken: list[tuple[Job, asyncio.Future[Answer]]] = []
        while len(taken) < most:
            try:
                entry = self._waiting.get_nowait()
            except Empty:
                break
            if entry is None:  # closing: hand the mark on, so that the worker that waits next ends too
                self._waiting.put(None)
                break
            taken.append(entry)
        return taken

    def _answers(self, jobs: list[Job]) -> Sequence[Answer | Exception]:
        try:
            return self._run(jobs)
        except Exception as error:  # it belongs to the callers who wait, not to this thread
            return [error] * len(jobs)


def _deliver(futures: list[asyncio.Future[Answer]], answers: Sequence[Answer | Exception]) -> None:
    for future, answer in zip(futures, answers, strict=True):
        if future.done():  # cancelled while the batch ran
            continue
        if isinstance(answer, Exception):
            future.set_exception(answer)
        else:
            future.set_result(answer)
