"""The images that encoders and models are judged and compared on, their embeddings, and the judging itself."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from indexer.encoder import Device
from indexer.encoder import Encoder as RuntimeEncoder
from indexer.pixels import Pixels, PixelSpec
from indexer.sources import Collection, Source, SourceError, decode_all, open_collection
from trainer.encoders import Encoder, WeightsError
from trainer.environment import choose_device
from trainer.evaluate import RECALL_AT, Metrics, retrieval_metrics
from trainer.images import ImageCache, Progress, cache_images
from trainer.labels import Labels, read_labels
from trainer.memory import images_at_once
from trainer.recipe import Recipe
from trainer.start import Start, pretrained

_SAMPLE = 500  # images of the training set: seconds to embed, enough to compare epochs and to draw a map
_NEIGHBOURS = 5
_LEAST_SPREAD = 1e-4  # of embeddings, as a share of their length; float32 networks round at about 1e-6
_ENOUGH = 20  # images with another of their class, for a share of their neighbours to mean something
_CPU = torch.device("cpu")

Embed = Callable[[Tensor], Tensor]  # pixels (B, S, S, 3) uint8 to embeddings (B, D) float32, unit length


@dataclass(frozen=True)
class Judge:
    """The labelled images that models are judged on, decoded."""

    cache: ImageCache
    classes: Tensor
    is_query: Tensor | None
    device: torch.device

    def measure(self, embeddings: Tensor, *, clusters: bool = True) -> Metrics:
        """The metrics of the images' embeddings."""
        embeddings = embeddings.to(self.device)
        return retrieval_metrics(embeddings, self.classes, is_query=self.is_query, clusters=clusters)


def judging_set(
    known: Labels, collection: Collection, spec: PixelSpec, file: Path, device: torch.device, progress: Progress
) -> Judge:
    """The images to judge on, decoded into a file; raises SourceError where none can be."""
    sources = known.judging(collection.sources)
    cache = cache_images(sources, spec, file, progress, "decode")
    if not len(cache):
        item, reason = cache.skipped[0] if cache.skipped else ("", "")
        raise SourceError(f"none of the {len(sources):,} images to judge on can be decoded; {item}: {reason}")
    return Judge(cache, known.classes(cache.items), known.is_query(cache.items), device)


def rest_set(
    known: Labels, collection: Collection, spec: PixelSpec, file: Path, device: torch.device, progress: Progress
) -> Judge | None:
    """The images of the split rest, to judge on apart, each searched among all others; None where two can't be."""
    cache = cache_images(known.rest(collection.sources), spec, file, progress, "decode")
    classes = known.classes(cache.items)
    if len(set(classes.tolist())) == len(classes):  # none has another to find
        return None
    return Judge(cache, classes, None, device)


def sample_set(
    collection: Collection, cache: ImageCache, spec: PixelSpec, file: Path, progress: Progress
) -> ImageCache:
    """Some images of the training set at the model's own spec, to compare epochs on, and to show without labels."""
    chosen = {cache.items[row] for row in spread(len(cache), _SAMPLE)}
    sources = [source for source in collection.sources if source.item in chosen]
    return cache_images(sources, spec, file, progress, "decode")


def spread(total: int, most: int) -> list[int]:
    """At most so many rows, spread evenly over all of a set, which may lie class by class."""
    count = min(total, most)
    return [place * total // count for place in range(count)]


def neighbour_precision(similarity: Tensor, classes: Tensor) -> float | None:
    """How often images that are held alike share a class: what pseudo-labels are worth.

    Args:
        similarity: (N, N) float32, of embeddings or as labelled; a sample of some hundred images is enough.
        classes: (N,) int64, -1 where unknown.

    Returns:
        The mean share, over labelled images, of the 5 nearest labelled ones that have their class; of as many as the
        class has, where these are fewer. None where too few images have another of their class.
    """
    known = classes >= 0
    similarity, classes = similarity[known][:, known], classes[known]
    others = torch.bincount(classes)[classes] - 1
    if (others > 0).sum() < _ENOUGH:
        return None
    similarity = similarity.fill_diagonal_(-torch.inf)
    nearest = similarity.topk(min(_NEIGHBOURS, len(classes) - 1), dim=1).indices
    wanted = others.clamp_max(nearest.shape[1])
    counted = torch.arange(nearest.shape[1]) < wanted[:, None]
    correct = (classes[nearest] == classes[:, None]) & counted
    return (correct.sum(1) / wanted)[others > 0].mean().item()


def torch_embed(encoder: nn.Module, device: torch.device) -> Embed:
    """How an encoder in training, or a backbone, embeds; leaves it in eval mode."""
    encoder.eval()

    @torch.no_grad()
    def embed(pixels: Tensor) -> Tensor:
        return F.normalize(encoder(_images(pixels, device)).float(), dim=1)

    return embed


def _images(pixels: Tensor, device: torch.device) -> Tensor:
    """(B, S, S, 3) uint8 to (B, 3, S, S) float32 in [0, 1] on the device."""
    return pixels.to(device).permute(0, 3, 1, 2).float() / 255


@torch.no_grad()
def centre(encoder: Encoder, sample: ImageCache, device: torch.device, progress: Progress) -> None:
    """Move the origin of an encoder's embeddings to their mean over a sample, through the bias of its linear head.

    Where the sample's images are all alike, nothing would be left of them there but rounding: the bias becomes zero.
    """
    encoder.eval()
    head = encoder.head
    assert isinstance(head, nn.Linear)  # noqa: S101  # of every objective that asks to be centred
    head.bias.zero_()
    rows = embed_images(sample, lambda pixels: encoder(_images(pixels, device)).float(), progress, device)
    mean = rows.mean(0)
    if (rows - mean).norm(dim=1).mean() > _LEAST_SPREAD * rows.norm(dim=1).mean():
        head.bias.sub_(mean.to(head.bias))


def collapsed(before: Tensor, after: Tensor) -> tuple[str, ...]:
    """A warning where images that were told apart before training, (N, C), are all one embedding after it, (N, D)."""
    apart = ((rows - rows.mean(0)).norm(dim=1).mean() > _LEAST_SPREAD for rows in (before, after))
    if [*apart] != [True, False]:
        return ()
    warning = (
        f"the model gives all {len(after):,} images that it was tried on the same embedding: training has collapsed; "
        f"lower optimizer.lr"
    )
    return (warning,)


def runtime_embed(runtime: RuntimeEncoder) -> Embed:
    """How an exported model embeds."""
    return lambda pixels: torch.from_numpy(runtime.embed(pixels.numpy()))


def embed_images(cache: ImageCache, embed: Embed, progress: Progress, device: torch.device = _CPU) -> Tensor:
    """Embeddings (N, D) of decoded images, on the CPU; `device` is where `embed` computes, in passes of its size."""
    parts, total = [], len(cache)
    batch = images_at_once(cache.pixels.shape[1], device)
    for pixels in torch.split(cache.pixels, batch):
        parts.append(embed(pixels).cpu())
        progress("judge", min(len(parts) * batch, total), total)
    return torch.cat(parts)


def embed_sources(
    sources: Sequence[Source], runtime: RuntimeEncoder, progress: Progress
) -> tuple[Tensor, list[str], list[tuple[str, str]]]:
    """Decode sources and embed them with an exported model, a batch at a time.

    Returns:
        Embeddings (N, D), the N items that they are of, and (item, reason) of each that could not be decoded.
    """
    embeddings, items, skipped = [torch.empty(0, runtime.dim)], [], []
    batch: list[Pixels] = []
    most = images_at_once(runtime.pixels.size, _CPU)
    for decoded in decode_all(sources, runtime.pixels):
        if decoded.pixels is None:
            skipped.append((decoded.source.item, str(decoded.error)))
        else:
            batch.append(decoded.pixels)
            items.append(decoded.source.item)
        if len(batch) == most or (batch and decoded.row + 1 == len(sources)):
            embeddings.append(torch.from_numpy(runtime.embed(np.stack(batch))))
            batch.clear()
        progress("embed", decoded.row + 1, len(sources))
    return torch.cat(embeddings), items, skipped


@dataclass(frozen=True, kw_only=True)
class Before:
    """What the images that a run shows look like before it: by the backbone, or the model that it starts from."""

    embeddings: Tensor
    frozen: Metrics | None
    start: Metrics | None = None
    warnings: tuple[str, ...] = ()


def judge_start(
    start: Start, recipe: Recipe, shown: ImageCache, judge: Judge | None, device: torch.device, progress: Progress
) -> Before:
    """Embed the images that a run shows, and judge by them, with what it starts from and with its frozen backbone."""
    embeddings = embed_images(shown, torch_embed(start.network, device), progress, device)
    measured = judge.measure(embeddings) if judge else None
    if judge is None or not recipe.encoder.from_model:
        return Before(embeddings=embeddings, frozen=measured)
    try:
        backbone = pretrained(recipe, device)
    except WeightsError as error:  # only a comparison is lost
        warning = f"the frozen backbone was not judged: {error}"
        return Before(embeddings=embeddings, frozen=None, start=measured, warnings=(warning,))
    frozen = judge.measure(embed_images(shown, torch_embed(backbone, device), progress, device))
    return Before(embeddings=embeddings, frozen=frozen, start=measured)


@dataclass(frozen=True)
class Rest:
    """The unlabelled images of classes that are learned, as they were before training."""

    judge: Judge
    before: Before

    def judged(
        self, model: Path, supervised: Encoder | None, device: torch.device, progress: Progress
    ) -> dict[str, Metrics]:
        """The metrics of what was there before, of the baseline where there is one, and of the model."""
        score = Score(self.judge.cache, self.judge, self.before, progress)
        score(RuntimeEncoder.open(model, device="cpu"))
        found = {
            "frozen": self.before.frozen,
            "start": self.before.start,
            "supervised": measured(supervised, self.judge, device, progress),
            "trained": score.metrics,
        }
        return {who: metrics for who, metrics in found.items() if metrics}


def judge_rest(start: Start, recipe: Recipe, judge: Judge, device: torch.device, progress: Progress) -> Rest:
    """Judge the images of the split rest as `judge_start` does; its warnings are those of the other images."""
    return Rest(judge, judge_start(start, recipe, judge.cache, judge, device, progress))


def measured(
    encoder: Encoder | None, judge: Judge | None, device: torch.device, progress: Progress
) -> Metrics | None:
    """The metrics of an encoder in training; None where there is none, or nothing to judge on."""
    if encoder is None or judge is None:
        return None
    return judge.measure(embed_images(judge.cache, torch_embed(encoder, device), progress, device))


class Score:
    """Judges the exported model, and keeps its embeddings and metrics for the run's report."""

    def __init__(self, shown: ImageCache, judge: Judge | None, before: Before, progress: Progress):
        self._shown, self._judge, self._before, self._progress = shown, judge, before, progress
        self.embeddings = torch.empty(0)
        self.metrics: Metrics | None = None

    def __call__(self, runtime: RuntimeEncoder) -> dict[str, float]:
        """What the model's manifest says of it; nothing without labels."""
        self.embeddings = embed_images(self._shown, runtime_embed(runtime), self._progress)
        if self._judge is None:
            return {}
        self.metrics = self._judge.measure(self.embeddings)
        named = (("frozen", self._before.frozen), ("start", self._before.start), ("trained", self.metrics))
        measured = {who: metrics.to_dict() for who, metrics in named if metrics}
        return {f"{who}.{name}": value for who, metrics in measured.items() for name, value in metrics.items()}


def evaluate(
    model: Path,
    images: Path,
    labels: Path,
    *,
    recall_at: Sequence[int] = RECALL_AT,
    device: Device = "auto",
    progress: Progress,
    warn: Callable[[str], None] = lambda _: None,
) -> tuple[Metrics, tuple[tuple[str, str], ...]]:
    """Judge a model of a store on labelled images: all but the split `train`, or all where there is no split.

    Args:
        model: its directory.
        images: what `indexer.sources.open_collection` takes.
        labels: a table `path,class_id[,split]`.
        recall_at: each k of R@k.
        device: where to compute.
        progress: hears the stage `embed`.
        warn: called with a sentence for what of images and labels is left out, before any is embedded.

    Returns:
        The metrics, and (item, reason) of each image to judge on that is not there or could not be decoded.

    Raises:
        SourceError, LabelsError: the images or labels can't be used.
        ManifestError: the model can't be opened.
        RunError: there is no such device.
        ValueError: no image to search with shares its class with one to find.
    """
    chosen = choose_device(device)
    runtime = RuntimeEncoder.open(model, device=device)  # by ONNX Runtime, whose build may be another than torch's
    collection = open_collection(images)
    known = read_labels(labels, collection)
    for warning in (*collection.warnings, *known.warnings, *_unjudged(known, collection, labels)):
        warn(warning)
    sources = known.judging(collection.sources)
    gone = [(path, f"labelled, but not in {images}") for path in known.missing]
    embeddings, items, skipped = embed_sources(sources, runtime, progress)
    if not items:
        raise SourceError(f"none of the {len(sources):,} labelled images in {images} can be decoded: {skipped[0][1]}")
    metrics = retrieval_metrics(
        embeddings.to(chosen),
        known.classes(items),
        is_query=known.is_query(items),
        recall_at=recall_at,
    )
    return metrics, (*gone, *skipped)


def _unjudged(known: Labels, collection: Collection, table: Path) -> tuple[str, ...]:
    """A warning of images without a class, if there are any."""
    total = len(collection.sources)
    without = total - sum(source.item in known.class_of for source in collection.sources)
    if not without:
        return ()
    return (f"{without:,} of the {total:,} images have no class in {table}: none is searched with or found",)
