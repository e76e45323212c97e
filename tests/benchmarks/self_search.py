"""Whether each image of a collection finds itself first: every one is searched by its bytes through a running server.

Run: kinsight serve --store STORE --listen 127.0.0.1:50051
     python tests/benchmarks/self_search.py IMAGES [--index NAME] [--server HOST:PORT]
"""

import argparse
import asyncio
import json
import time
from collections.abc import Sequence
from pathlib import Path

from kinsight_client import AsyncClient

from indexer.source import Source
from indexer.sources import open_collection

CLIENTS = 8
TIE = 1e-6  # of similarities: copies of one image are equally near, in whichever order they come


def main() -> None:
    """Search for every image and print how many found themselves, and how long it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path, help="the collection that was indexed")
    parser.add_argument("--index", default="", help="its index, where the server has several")
    parser.add_argument("--server", default="127.0.0.1:50051", metavar="HOST:PORT")
    arguments = parser.parse_args()
    sources = open_collection(arguments.images).sources
    print(json.dumps(asyncio.run(search_all(sources, arguments.server, arguments.index))))


async def search_all(sources: Sequence[Source], server: str, index: str) -> dict[str, float]:
    """The share of images that are their own first hit, or tied with it, and the latency of the searches."""
    latencies: list[float] = []
    itself: list[tuple[bool, bool]] = []
    waiting = iter(sources)

    async def work(client: AsyncClient) -> None:
        for source in waiting:  # one iterator for all: each takes the next
            data = await asyncio.to_thread(source.read)
            started = time.perf_counter()
            hits = (await client.search(image=data, top_k=10, index=index)).hits
            latencies.append(time.perf_counter() - started)
            nearest = [hit.item for hit in hits if hit.similarity >= hits[0].similarity - TIE]
            itself.append((hits[0].item == source.item, source.item in nearest))

    started = time.perf_counter()
    async with AsyncClient(server, timeout_s=120) as client:
        await asyncio.gather(*(work(client) for _ in range(CLIENTS)))
    seconds = time.perf_counter() - started
    latencies.sort()
    return {
        "images": len(itself),
        "first": sum(first for first, _ in itself) / len(itself),
        "first_or_tied": sum(tied for _, tied in itself) / len(itself),
        "queries_per_s": len(itself) / seconds,
        "p50_ms": 1e3 * latencies[len(latencies) // 2],
        "p99_ms": 1e3 * latencies[int(len(latencies) * 0.99)],
    }


if __name__ == "__main__":
    main()
