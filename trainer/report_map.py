"""The report's map: embeddings laid out in two dimensions, like near like, with thumbnails where there is room."""

import numpy as np
import numpy.typing as npt
import torch

from trainer.report_cases import Shown
from trainer.report_pieces import shortened, text, thumbnail

_POINTS = 1_500  # at most: t-SNE of so many takes seconds
_THUMBNAILS = 200
_TSNE_FROM = 30  # images; fewer have too few neighbours for t-SNE to mean anything
_PCA_DIM = 50  # as t-SNE's authors advise: noise goes, distances stay
_WIDTH, _HEIGHT, _MARGIN = 1000, 700, 34
_SIDE, _PIXELS = 46, 72  # of a thumbnail on the map, and of its picture: sharp when the map is enlarged
_GAP = 3  # between thumbnails, for their frames
_NAME_LENGTH = 80

Points = npt.NDArray[np.float64]


def draw_map(shown: Shown) -> str:
    """The map of the trained embeddings as SVG; of 1,500 images drawn with a fixed seed where there are more."""
    rows = np.sort(np.random.default_rng(0).permutation(len(shown.items))[:_POINTS])
    at = layout(shown.trained[torch.from_numpy(rows)].numpy())
    at = _MARGIN + at * [_WIDTH - 2 * _MARGIN, _HEIGHT - 2 * _MARGIN]
    pictured = spread(at)
    dots = "".join(_dot(shown, row, x, y) for row, (x, y) in zip(rows, at, strict=True))
    pictures = "".join(_picture(shown, int(rows[i]), *at[i]) for i in pictured)
    told = (
        f"Map of {len(rows):,} images, {len(pictured)} of them as thumbnails; images with like embeddings lie close."
    )
    return f'<svg class="map" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{told}">{dots}{pictures}</svg>'


def layout(embeddings: npt.NDArray[np.float32]) -> Points:
    """Places of embeddings (N, D) on a plane, (N, 2) in [0, 1]: by PCA to 50 dimensions, then t-SNE; few by PCA."""
    centred = embeddings.astype(np.float64) - embeddings.mean(0, dtype=np.float64)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    axes = u[:, :_PCA_DIM] * s[:_PCA_DIM]
    if s[0] < 1e-6 * len(embeddings):
        return np.full((len(embeddings), 2), 0.5)  # all images are alike: t-SNE would divide by zero
    flat = np.pad(axes[:, :2], ((0, 0), (0, max(0, 2 - axes.shape[1]))))
    if len(embeddings) >= _TSNE_FROM:
        from sklearn.manifold import TSNE  # takes seconds, which only a run that came to its end should pay

        start = (flat / flat[:, 0].std() * 1e-4).astype(np.float32)  # t-SNE is meant to start near one point
        perplexity = min(30.0, (len(embeddings) - 1) / 3)
        flat = TSNE(perplexity=perplexity, init=start, random_state=0).fit_transform(axes.astype(np.float32))
    low, high = flat.min(0), flat.max(0)
    return np.asarray((flat - low) / np.where(high > low, high - low, 1), np.float64)


def spread(at: Points) -> list[int]:
    """Which of the points get a thumbnail: at most 200, in a fixed random order, no two over each other."""
    chosen: list[int] = []
    for i in np.random.default_rng(0).permutation(len(at)):
        if len(chosen) < _THUMBNAILS and all(np.abs(at[i] - at[j]).max() >= _SIDE + _GAP for j in chosen):
            chosen.append(int(i))
    return chosen


def _dot(shown: Shown, row: int, x: float, y: float) -> str:
    name = text(shortened(shown.items[row], _NAME_LENGTH))
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4"{_colour("fill", shown, row)}><title>{name}</title></circle>'


def _picture(shown: Shown, row: int, x: float, y: float) -> str:
    uri = thumbnail(_middle(shown.pixels[row], float(shown.aspect[row])), 1.0, _PIXELS)
    left, top = f"{x - _SIDE / 2:.1f}", f"{y - _SIDE / 2:.1f}"
    place = f'x="{left}" y="{top}" width="{_SIDE}" height="{_SIDE}"'
    name = text(shortened(shown.items[row], _NAME_LENGTH))
    return f'<g><title>{name}</title><image {place} href="{uri}"/><rect {place}{_colour("stroke", shown, row)}/></g>'


def _middle(pixels: torch.Tensor, aspect: float) -> torch.Tensor:
    """The part of a squashed image (S, S, 3) that is the largest square in the middle of the original."""
    side = len(pixels)
    kept = max(1, round(side * min(aspect, 1 / aspect)))
    first = (side - kept) // 2
    return pixels[:, first : first + kept] if aspect > 1 else pixels[first : first + kept]


def _colour(what: str, shown: Shown, row: int) -> str:
    if shown.classes is None:
        return ""
    hue = int(shown.classes[row]) * 137.508 % 360  # the golden angle: near numbers get far hues
    return f' style="{what}: hsl({hue:.0f} 65% 50%)"'
