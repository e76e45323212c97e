"""What archives cost: images decoded from a tar shard and a Parquet table against the same ones in a folder.

Also lists a folder of empty files named like images, and tells time and memory by source.

Run: python tests/benchmarks/bench_sources.py [FILES]   (100,000 by default; 1,000,000 take some minutes to make)
"""

import io
import json
import re
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from indexer.pixels import PixelSpec
from indexer.sources import decode_all, open_collection
from tests.benchmarks.photographs import photograph

PHOTOGRAPHS, TURNS = 500, 3
SPEC = PixelSpec(size=160)  # what training at 112 pixels crops its views from


def _write(root: Path) -> dict[str, Path]:
    """The same photographs as a folder, a shard and a table."""
    images = {f"{number:05d}.jpg": photograph(number) for number in range(PHOTOGRAPHS)}
    places = {"folder": root / "images", "tar": root / "shard.tar", "parquet": root / "images.parquet"}
    places["folder"].mkdir()
    with tarfile.open(places["tar"], "w") as tar:
        for name, data in images.items():
            (places["folder"] / name).write_bytes(data)
            header = tarfile.TarInfo(name)
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))
    rows = [{"bytes": data, "path": name} for name, data in images.items()]
    pq.write_table(pa.table({"image": rows}), places["parquet"], row_group_size=100)
    return places


def _decode_s(place: Path) -> float:
    """CPU seconds of all threads: other programs on the machine do not decide."""
    start = time.process_time()
    assert all(decoded.error is None for decoded in decode_all(open_collection(place).sources, SPEC))
    return time.process_time() - start


def _list(root: Path, count: int) -> dict[str, float]:
    for number in range(count):
        folder = root / f"part-{number // 1000:04d}"
        if number % 1000 == 0:
            folder.mkdir()
        (folder / f"{number:08d}.jpg").touch()
    before, start = _resident_bytes(), time.process_time()
    sources = open_collection(root).sources
    seconds = time.process_time() - start
    return {"files": len(sources), "list_s": seconds, "bytes_a_source": (_resident_bytes() - before) / len(sources)}


def _resident_bytes() -> int:
    found = re.search(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) * 1024


def main() -> None:
    """Measure all in turns and print the ratios."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "empty").mkdir()
        listed = _list(root / "empty", count)
        places = _write(root)
        turns = [{name: _decode_s(place) for name, place in places.items()} for _ in range(TURNS)]
    best = {name: min(turn[name] for turn in turns) for name in places}
    print(f"{PHOTOGRAPHS} photographs decoded, CPU s:", ", ".join(f"{name} {s:.2f}" for name, s in best.items()))
    print(f"{count:,} files listed in {listed['list_s']:.2f} CPU s, {listed['bytes_a_source']:.0f} bytes a source")
    ratios = {f"{name}_ratio": best[name] / best["folder"] for name in ("tar", "parquet")}
    print(json.dumps({**{f"{name}_s": s for name, s in best.items()}, **ratios, **listed}))


if __name__ == "__main__":
    main()
