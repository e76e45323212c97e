"""Exact nearest neighbours, a tile of the matrix of all pairs at a time."""

import torch
from torch import Tensor

_COLUMNS = 16384  # of one tile of all pairs, or as many as are to be found
# Similarities of one tile: in float32, 8 MiB that stay in a CPU's cache, or 128 MiB that keep a GPU busy.
_TILE = {"cpu": 2**21, "cuda": 2**25}
_LAST_ROW = 2**31 - 1


@torch.no_grad()
def nearest(rows: Tensor, k: int, of: Tensor | None = None) -> Tensor:
    """The k nearest rows of each row, or of some, by Euclidean distance, itself always first.

    Beside a copy of the rows, and another while that is made, it takes the memory of a tile of pairs, however many
    rows there are. Among equal distances the lower row is nearer.

    Args:
        rows: (N, C) float32, N below 2³¹.
        k: at least 1; at most N are found.
        of: (M,) int64, the rows whose nearest are wanted; None for all.

    Returns:
        (M, min(k, N)) int64, nearest first, on the device of `rows`; M is N for all.
    """
    of, k = torch.arange(len(rows), device=rows.device) if of is None else of, min(k, len(rows))
    if k == 1:
        return of[:, None]
    augmented = _augmented(rows)
    lists = torch.empty(len(of), k, dtype=torch.int64, device=rows.device)
    lists[:, 0] = of
    at_once = queries_at_once(k, rows.device)
    for own, found in zip(torch.split(of, at_once), torch.split(lists, at_once), strict=True):
        queries = augmented[own]
        queries[:, -1] = 1
        _, found[:, 1:] = most_similar(queries, augmented, k - 1, own)
    return lists


def _augmented(rows: Tensor) -> Tensor:
    """Rows (N, C + 1) whose inner product with (a, 1) falls as their distance from a grows: (b, -|b|² / 2).

    It is (|a|² - |a - b|²) / 2, of which |a|² is the same for all b.
    """
    augmented = torch.empty(len(rows), rows.shape[1] + 1, dtype=rows.dtype, device=rows.device)
    moved = augmented[:, :-1]
    torch.sub(rows, rows.mean(0), out=moved)  # distances stay, and fewer digits are lost around the origin
    torch.linalg.vecdot(moved, moved, out=augmented[:, -1])
    augmented[:, -1] /= -2
    return augmented


def queries_at_once(k: int, device: torch.device) -> int:
    """How many queries `most_similar` should get at a time to find k rows of each, so that its tiles stay small."""
    # What is made of each row that is found, here and by the caller, takes several times a similarity's bytes.
    return max(1, _TILE[device.type] // max(_COLUMNS, 8 * k))


@torch.no_grad()
def most_similar(queries: Tensor, gallery: Tensor, k: int, own: Tensor) -> tuple[Tensor, Tensor]:
    """The k rows of a gallery most similar to each query, by inner product.

    Among equal similarities, as duplicates have them, the lower row comes first: on every device, in any tiles.

    Args:
        queries: (Q, D) float32; `queries_at_once` of them, or fewer.
        gallery: (N, D) float32, N below 2³¹.
        k: from 1 to the number of rows that each query may find.
        own: (Q,) int64, the row that each query must not find because it is the query itself; -1 for none.

    Returns:
        Similarities (Q, k) float32, highest first, and rows (Q, k) int64.
    """
    best = torch.empty(len(queries), 0, dtype=torch.int64, device=queries.device)
    for first in range(0, len(gallery), max(_COLUMNS, k)):
        part = gallery[first : first + max(_COLUMNS, k)]
        tile = queries @ part.T
        here = ((own >= first) & (own < first + len(part))).nonzero().flatten()
        tile[here, own[here] - first] = -torch.inf
        best = torch.cat([best, _best_keys(tile, first, k)], 1)
        best = best.topk(min(k, best.shape[1]), dim=1).values
    return _similarity_of(best), _LAST_ROW - (best & 0xFFFFFFFF)


def _best_keys(tile: Tensor, first: int, k: int) -> Tensor:
    """Keys of the k best columns of each row of a tile, or of all; in no order."""
    columns = torch.arange(first, first + tile.shape[1], device=tile.device).expand_as(tile)
    if tile.shape[1] <= k:
        return _keys(tile, columns)
    values, order = tile.topk(k + 1, dim=1)
    keys = _keys(values[:, :k], order[:, :k] + first)
    # Where the best that is left out equals the worst that is kept, topk has chosen among them as it liked.
    tied = (values[:, k - 1] == values[:, k]).nonzero().flatten()
    keys[tied] = _keys(tile[tied], columns[tied]).topk(k, dim=1).values
    return keys


def _keys(similarity: Tensor, rows: Tensor) -> Tensor:
    """Integers that sort as the similarities do and, where these are equal, lower rows higher."""
    return _mirrored((similarity + 0.0).view(torch.int32)).long() << 32 | _LAST_ROW - rows  # + 0.0: -0 equals 0


def _similarity_of(keys: Tensor) -> Tensor:
    return _mirrored((keys >> 32).int()).view(torch.float32)


def _mirrored(bits: Tensor) -> Tensor:
    """Bits of float32 as integers that sort as the floats do, and back: those of negative floats run downward."""
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)
