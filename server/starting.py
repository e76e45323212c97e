"""How requests start long work, and which ids a request may have."""

import asyncio
import re
from collections.abc import Callable

from google.longrunning import operations_pb2

from server import progress
from server.errors import InvalidRequestId
from server.indexes import Indexes
from server.jobs import Job, Jobs

_REQUEST_ID = re.compile(r"[ -~]{0,64}")


async def started(
    jobs: Jobs, indexes: Indexes, job_of: Callable[[], Job], request_id: str = ""
) -> operations_pb2.Operation:
    """The operation of a job, which is started unless the same request started it before.

    Args:
        jobs: of the server.
        indexes: that it serves.
        job_of: says what to do; called on a thread, as it may read disks and write, once the request's id is known
            to be one.
        request_id: of the client; "" for none.

    Raises:
        InvalidRequestId: it can't be one.
        RequestError: as `job_of` and `Jobs.start` raise them.
    """
    check_request_id(request_id)
    operation = await jobs.start(await asyncio.to_thread(job_of), request_id)
    return await asyncio.to_thread(progress.message, indexes, jobs.store, operation)


def check_request_id(request_id: str) -> None:
    """Raise InvalidRequestId where it can't be one; empty is none."""
    if not _REQUEST_ID.fullmatch(request_id):
        raise InvalidRequestId(f"request_id is {request_id[:80]!r}; it must be 1 to 64 printable ASCII characters")
