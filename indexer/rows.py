"""The full-precision rows of a version, in FAISS's own file format, written as a stream and read through a map.

FAISS can only write an index that is in memory as a whole. Its flat index is a fixed header and then the rows, so the
header is taken from an empty index and the count filled in at the end: rows go to the disk as they are made.
"""

import os
import struct
from pathlib import Path
from typing import Self

import faiss
import numpy as np
import numpy.typing as npt

Embeddings = npt.NDArray[np.float32]

_COUNT_AT = 8  # after the type's four letters and the dimension: int64
_FLOAT_BYTES = 4


class RowWriter:
    """Appends rows to a file that becomes a FAISS `IndexFlatIP` with `finish`; what `sync` wrote survives a crash."""

    def __init__(self, path: Path, dim: int, keep: int = 0) -> None:
        """Open the file, cut to its first `keep` rows.

        Raises:
            OSError: it has fewer than `keep` rows.
        """
        self._dim = dim
        self._header = _header(dim)
        self._file = path.open("r+b" if keep else "w+b")
        end = len(self._header) + keep * dim * _FLOAT_BYTES
        if keep and path.stat().st_size < end:
            self._file.close()
            raise OSError(f"{path} has fewer than {keep:,} rows of dimension {dim}")
        self.count = keep
        self._file.write(self._header)
        self._file.truncate(end)
        self._file.seek(end)

    def append(self, embeddings: Embeddings) -> None:
        """Append (B, D) float32 rows."""
        self._file.write(np.ascontiguousarray(embeddings, dtype=np.float32).tobytes())
        self.count += len(embeddings)

    def sync(self) -> None:
        """Put every row so far on the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def finish(self) -> None:
        """Fill in the count; the file is a FAISS index now."""
        self._file.seek(_COUNT_AT)
        self._file.write(struct.pack("<q", self.count))
        self._file.seek(len(self._header) - 8)
        self._file.write(struct.pack("<Q", self.count * self._dim))
        self.sync()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def map_rows(path: Path, count: int, dim: int) -> Embeddings:
    """The rows of a file as an array that is read from the disk where it is touched, (count, dim) float32."""
    return np.memmap(path, np.float32, mode="r", offset=len(_header(dim)), shape=(count, dim))


def take(rows: Embeddings, chosen: npt.NDArray[np.int64] | slice) -> Embeddings:
    """A copy of chosen rows in memory, aligned as FAISS's kernels like it."""
    return np.require(rows[chosen], np.float32, ["C", "A", "O"])


def _header(dim: int) -> bytes:
    return bytes(faiss.serialize_index(faiss.IndexFlatIP(dim)).tobytes())
