"""Labels that disagree with a metric: the likeliest to be wrong, or what the metric has yet to learn."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from indexer.sources import Digests
from trainer.known import Known

_ROWS = 1024  # of the matrix of all pairs at a time


@dataclass(frozen=True, kw_only=True)
class Suspect:
    """A labelled image that looks more like one known to be different than like any known to be the same.

    Attributes:
        item: the image.
        like: the image known to be different that it looks most like.
        similarity: of the two.
        own_similarity: to the most similar image known to be the same.
    """

    item: str
    like: str
    similarity: float
    own_similarity: float


@torch.no_grad()
def find_suspects(embeddings: Tensor, items: Sequence[str], known: Known) -> tuple[list[Suspect], int]:
    """Compare each labelled image with the others.

    Args:
        embeddings: (N, D) float32, unit length.
        items: the N item ids.
        known: what is known of the N images.

    Returns:
        The suspects, the surest first, and how many images could be compared: those with another one known to be the
        same and one known to be different.
    """
    suspects: list[Suspect] = []
    compared = 0
    for rows in torch.split(torch.arange(len(items)), _ROWS):
        similarity = embeddings[rows] @ embeddings.T
        same, different = known.relations(known.label[rows], known.label)
        same &= rows[:, None] != torch.arange(len(items))
        own = similarity.masked_fill(~same, -torch.inf).amax(1)
        other, nearest = similarity.masked_fill(~different, -torch.inf).max(1)
        comparable = own.isfinite() & other.isfinite()
        compared += int(comparable.sum())
        suspects += [
            Suspect(
                item=items[int(rows[row])],
                like=items[int(nearest[row])],
                similarity=other[row].item(),
                own_similarity=own[row].item(),
            )
            for row in (comparable & (other > own)).nonzero().flatten().tolist()
        ]
    return sorted(suspects, key=lambda suspect: suspect.own_similarity - suspect.similarity), compared


def copies_at_odds(items: Sequence[str], digests: Digests, known: Known) -> list[tuple[str, str]]:
    """Labelled images whose files are those of others that are known to be different, each with the first of these.

    Args:
        items: the N item ids.
        digests: (N,) bytes of 32, of each item's file.
        known: what is known of the N images.
    """
    rows_of: dict[bytes, list[int]] = {}
    found = []
    for row, digest in enumerate(digests.tolist()):
        same_file = rows_of.setdefault(digest, [])
        _, different = known.relations(known.label[[row]], known.label[same_file])
        found += [(items[row], items[same_file[at]]) for at in different[0].nonzero().flatten().tolist()[:1]]
        same_file.append(row)
    return found
