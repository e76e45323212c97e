"""One training run from images to a registered model, and the judging of models with labels."""

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from indexer.encoder import Encoder as RuntimeEncoder
from indexer.manifest import ModelManifest, write_atomically
from indexer.pixels import Pixels, PixelSpec
from indexer.sources import Collection, Duplicates, Source, SourceError, decode_all, open_collection
from trainer.choice import Choice, neighbour_contrast
from trainer.distributed import from_main, is_main, joined, wait_for_main
from trainer.encoders import Backbone, Encoder, make_backbone
from trainer.environment import peak_memory, record_environment
from trainer.evaluate import RECALL_AT, Metrics, retrieval_metrics
from trainer.export import PARITY_IMAGES, Origin, export
from trainer.images import ImageCache, Labels, Progress, all_the_same, cache_images, duplicates, read_labels
from trainer.log import read_log
from trainer.loop import train as run_loop
from trainer.memory import keep_freed_memory
from trainer.objective import Objective
from trainer.objectives import make_objective
from trainer.profiling import Profile
from trainer.recipe import Recipe, RecipeError, load, to_dict, to_toml
from trainer.report import REPORT, RunFacts
from trainer.report import write as write_report
from trainer.report_cases import Shown
from trainer.torchvision_sets import named_set

_RECIPE = "recipe.toml"  # of a run: resolved, written before the first step
_EMBED_BATCH = 128
_SAMPLE = 500  # images of the training set: seconds to embed, enough to compare epochs and to draw a map

Embed = Callable[[Tensor], Tensor]  # pixels (B, S, S, 3) uint8 to embeddings (B, D) float32, unit length


class RunError(ValueError):
    """A run can't be started or resumed as asked; the message says why."""


class RunStopped(OSError):
    """The disk is full or fails; the run keeps what it has written and can be resumed."""


@dataclass(frozen=True, kw_only=True)
class TrainReport:
    """What a training run did.

    Attributes:
        model: the manifest of the model that it registered.
        run: name of the run.
        report: the run's `report.html`; None where it could not be written, which is one of the warnings.
        epoch: whose encoder the model is, from 1.
        last_recall_at_1: R@1 of the last epoch's encoder, whichever was chosen; None without labels.
        images: how many images it learned from.
        skipped: (item, reason) of each image that could not be decoded.
        duplicates: images learned from or judged on whose files are the same.
        unknown_labels: paths of the labels table that are not in the collection.
        frozen: metrics of the backbone as it was before training; None without labels.
        trained: metrics of the exported model; None without labels.
        warnings: what went wrong and was dealt with: unreadable folders, damaged archives, a damaged checkpoint.
        images_per_s: images drawn a second while training.
        seconds: wall clock by stage.
        profile: where the time of the first training steps went, if that was asked for.
    """

    model: ModelManifest
    run: str
    report: Path | None
    epoch: int
    last_recall_at_1: float | None
    images: int
    skipped: tuple[tuple[str, str], ...]
    duplicates: Duplicates
    unknown_labels: tuple[str, ...]
    frozen: Metrics | None
    trained: Metrics | None
    warnings: tuple[str, ...]
    images_per_s: float
    seconds: Mapping[str, float]
    profile: Profile | None

    @property
    def beats_frozen(self) -> bool | None:
        """Whether training raised R@1 above the frozen backbone's; None without labels."""
        if self.frozen is None or self.trained is None:
            return None
        return self.trained.recall_at_1 > self.frozen.recall_at_1


@dataclass(frozen=True)
class _Judge:
    """The labelled images that models are judged on, decoded."""

    cache: ImageCache
    classes: Tensor
    is_query: Tensor | None
    device: torch.device

    def measure(self, embeddings: Tensor, *, clusters: bool = True) -> Metrics:
        """The metrics of the images' embeddings."""
        embeddings = embeddings.to(self.device)
        return retrieval_metrics(embeddings, self.classes, is_query=self.is_query, clusters=clusters)


def train(
    images: Path,
    *,
    models: Path,
    runs: Path,
    recipe: Recipe,
    labels: Path | None = None,
    datasets: Path = Path("datasets"),
    device: str = "auto",
    resume: str | None = None,
    profile: bool = False,
    progress: Progress,
) -> TrainReport:
    """Learn a metric from a collection of unlabelled images and register the model.

    In processes that torchrun started, all call this alike and train together; the main one does the rest.

    Args:
        images: what `indexer.sources.open_collection` takes, or `torchvision:NAME`, see `trainer.torchvision_sets`.
        models: the store's directory of models.
        runs: the store's directory of runs.
        recipe: what to learn with; a resumed run goes on with its own.
        labels: a table `path,class_id[,split]`, used to judge and never to learn; a set of torchvision has its own.
        datasets: where sets of torchvision are kept.
        device: auto, cpu or cuda.
        resume: name of an unfinished run in `runs` to go on with.
        profile: find out where the time of training steps goes, and write a trace of some into the run.
        progress: called with a stage, how much of it is done, and its total.

    Raises:
        SourceError: the collection can't be read, or fewer than two of its images can be decoded.
        DataSetError: torchvision has no such set, or it can't be had.
        LabelsError: the labels can't be used.
        RunError: there is no such run or device.
        WeightsError: the backbone's weights can't be had.
        TrainingError, CheckpointError: training can't go on.
        ParityError: the exported model does not reproduce the trained one.
        DistributedError: there are more processes than GPUs.
        RunStopped: the disk is full or fails.
    """
    keep_freed_memory()
    with joined(choose_device(device)) as chosen:
        images, labels = from_main(partial(named_set, images, labels, datasets, progress))
        collection = open_collection(images)
        known = read_labels(labels, collection) if labels else None
        run = from_main(lambda: _resume_run(runs, resume) if resume else _new_run(runs, recipe))
        with _told_how_to_go_on(run):
            if not is_main():
                _assist(images, collection, known, run, chosen)
            return from_main(lambda: _learn(images, collection, known, run, models, chosen, progress, profile))


def _assist(images: Path, collection: Collection, known: Labels | None, run: Path, chosen: torch.device) -> None:
    """What a process does that is not the main one: train with it."""
    recipe = _recipe_of(run)
    wait_for_main()  # until it has decoded the images
    cache = _training_set(images, collection, known, recipe, run, lambda *_: None)
    objective = _objective(recipe, _backbone(recipe, chosen))
    run_loop(objective, cache, recipe, run, device=chosen, progress=lambda *_: None)


def _learn(
    images: Path,
    collection: Collection,
    known: Labels | None,
    run: Path,
    models: Path,
    chosen: torch.device,
    progress: Progress,
    profile: bool,
) -> TrainReport:
    clock = _Clock()
    recipe = _recipe_of(run)
    environment = record_environment(run, chosen, recipe.run.seed)
    spec = PixelSpec(size=recipe.data.size, fit=recipe.data.fit)

    cache = _training_set(images, collection, known, recipe, run, progress)
    wait_for_main()  # what it decoded, the others read
    judge = _judging_set(known, collection, spec, run / "judged.u8", chosen, progress) if known else None
    sample = _sample_set(collection, cache, spec, run / "sample.u8", progress)
    shown = judge.cache if judge else sample
    clock.lap("decode")
    backbone = _backbone(recipe, chosen)
    before = _embed(shown, _torch_embed(backbone, chosen), progress)
    frozen = judge.measure(before) if judge else None
    clock.lap("frozen")

    objective = _objective(recipe, backbone)
    choice = Choice(run)

    def after_epoch(epoch: int, encoder: Encoder) -> dict[str, float]:
        embed = _torch_embed(encoder, chosen)
        contrast = neighbour_contrast(_embed(sample, embed, progress))
        if recipe.run.choose == "contrast":
            choice.offer(epoch, encoder, contrast)
        judged = judge.measure(_embed(shown, embed, progress), clusters=False).to_dict() if judge else {}
        return {"contrast": contrast, **judged}

    outcome = run_loop(
        objective, cache, recipe, run, device=chosen, progress=progress, on_epoch=after_epoch, profile=profile
    )
    encoder = outcome.encoder
    if recipe.run.choose == "contrast":
        choice.take(encoder)
    clock.lap("train")

    after: list[Tensor] = []
    trained: list[Metrics] = []

    def score(runtime: RuntimeEncoder) -> dict[str, float]:
        after.append(_embed(shown, _runtime_embed(runtime), progress))
        if judge is None or frozen is None:
            return {}
        trained.append(judge.measure(after[0]))
        named = (("frozen", frozen), ("trained", trained[0]))
        return {f"{who}.{name}": value for who, metrics in named for name, value in metrics.to_dict().items()}

    progress("export", 0, 1)
    model = export(encoder, spec, _sample(collection, cache, spec), models, _origin(recipe, backbone, cache), score)
    if not after:  # the store had this very model already
        score(RuntimeEncoder.open(models / model.id, device="cpu"))
    progress("export", 1, 1)
    clock.lap("export")
    done = TrainReport(
        model=model,
        run=run.name,
        report=None,
        epoch=choice.epoch or outcome.epochs,
        last_recall_at_1=_last_recall_at_1(run),
        images=len(cache),
        skipped=cache.skipped + (judge.cache.skipped if judge else ()),
        duplicates=duplicates(cache, judge.cache if judge else None),
        unknown_labels=known.unknown if known else (),
        frozen=frozen,
        trained=trained[0] if trained else None,
        warnings=(*collection.warnings, *all_the_same(cache), *outcome.warnings),
        images_per_s=outcome.images_per_s,
        seconds=clock.seconds,
        profile=outcome.profile,
    )
    pictures = _pictures(shown, judge, known, spec, before, after[0])
    told = _tell(run, done, recipe, environment, pictures, chosen)
    _forget_pixels(run)
    return told


def evaluate(
    model: Path,
    images: Path,
    labels: Path,
    *,
    recall_at: Sequence[int] = RECALL_AT,
    device: str = "auto",
    progress: Progress,
) -> tuple[Metrics, tuple[tuple[str, str], ...]]:
    """Judge a model of a store on labelled images: all but the split `train`, or all where there is no split.

    Returns:
        The metrics, and (item, reason) of each labelled image that is not there or could not be decoded.

    Raises:
        SourceError, LabelsError: the images or labels can't be used.
        ManifestError: the model can't be opened.
        ValueError: no image to search with shares its class with one to find.
    """
    chosen = choose_device(device)
    runtime = RuntimeEncoder.open(model, device="cpu" if chosen.type == "cpu" else "cuda")
    collection = open_collection(images)
    known = read_labels(labels, collection)
    sources = known.judging(collection.sources)
    embeddings, items = [], []
    skipped = [(path, f"labelled, but not in {images}") for path in known.unknown]
    batch: list[Pixels] = []
    for decoded in decode_all(sources, runtime.pixels):
        if decoded.pixels is None:
            skipped.append((decoded.source.item, str(decoded.error)))
        else:
            batch.append(decoded.pixels)
            items.append(decoded.source.item)
        if len(batch) == _EMBED_BATCH or (batch and decoded.row + 1 == len(sources)):
            embeddings.append(torch.from_numpy(runtime.embed(np.stack(batch))))
            batch.clear()
        progress("judge", decoded.row + 1, len(sources))
    if not embeddings:
        raise SourceError(f"none of the {len(sources):,} labelled images in {images} can be decoded: {skipped[0][1]}")
    metrics = retrieval_metrics(
        torch.cat(embeddings).to(chosen),
        torch.tensor([known.class_of[item] for item in items]),
        is_query=known.is_query(items),
        recall_at=recall_at,
    )
    return metrics, tuple(skipped)


def choose_device(name: str) -> torch.device:
    """The device of this name; `auto` is CUDA where it is live. Raises RunError where it is not to be had."""
    if name not in ("auto", "cpu", "cuda"):
        raise RunError(f"device is {name!r}; it must be auto, cpu or cuda")
    live = torch.cuda.is_available()
    if name == "cuda" and not live:
        raise RunError("device is cuda, but torch sees no GPU; use --device cpu, or run `kinsight doctor`")
    return torch.device("cuda" if live and name != "cpu" else "cpu")


def _new_run(runs: Path, recipe: Recipe) -> Path:
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S-%f")[:-3]
    run = runs / f"{stamp}-{recipe.objective.name}-seed{recipe.run.seed}"
    run.mkdir(parents=True)
    write_atomically(run / _RECIPE, to_toml(recipe).encode())
    return run


def _resume_run(runs: Path, name: str) -> Path:
    run = runs / name
    if not (run / _RECIPE).is_file():
        known = sorted(path.parent.name for path in runs.glob(f"*/{_RECIPE}"))
        raise RunError(f"no run {name!r} in {runs}; it has: {', '.join(known) or 'none'}")
    return run


@contextmanager
def _told_how_to_go_on(run: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        what = f"{error.filename}: {error.strerror}" if error.filename is not None else error.strerror or error
        raise RunStopped(f"{what}; free some space or mend that, and go on with --resume {run.name}") from error


def _recipe_of(run: Path) -> Recipe:
    try:
        return load(run / _RECIPE)
    except RecipeError as error:
        raise RunError(f"{run / _RECIPE} is damaged, start a new run: {error}") from error


def _training_set(
    images: Path, collection: Collection, known: Labels | None, recipe: Recipe, run: Path, progress: Progress
) -> ImageCache:
    sources = known.training(collection.sources) if known else collection.sources
    cache = cache_images(sources, PixelSpec(size=recipe.data.cache_size), run / "images.u8", progress, "decode")
    if len(cache) < 2:
        example = f"; {cache.skipped[0][0]}: {cache.skipped[0][1]}" if cache.skipped else ""
        raise SourceError(
            f"{len(cache)} of the {len(sources):,} images to learn from in {images} can be decoded; "
            f"a metric needs at least two{example}"
        )
    return cache


def _judging_set(
    known: Labels, collection: Collection, spec: PixelSpec, file: Path, device: torch.device, progress: Progress
) -> _Judge:
    sources = known.judging(collection.sources)
    cache = cache_images(sources, spec, file, progress, "decode")
    if not len(cache):
        item, reason = cache.skipped[0] if cache.skipped else ("", "")
        raise SourceError(f"none of the {len(sources):,} images to judge on can be decoded; {item}: {reason}")
    classes = torch.tensor([known.class_of[item] for item in cache.items], dtype=torch.int64)
    return _Judge(cache, classes, known.is_query(cache.items), device)


def _sample_set(
    collection: Collection, cache: ImageCache, spec: PixelSpec, file: Path, progress: Progress
) -> ImageCache:
    """Some images of the training set at the model's own spec, to compare epochs on, and to show without labels."""
    return cache_images(_spread(collection, cache, _SAMPLE), spec, file, progress, "decode")


def _backbone(recipe: Recipe, device: torch.device) -> Backbone:
    torch.manual_seed(recipe.run.seed)
    part = recipe.encoder
    backbone = make_backbone(part.backbone, part.weights, size=recipe.data.size, freeze_bn=part.freeze_bn)
    return backbone.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def _objective(recipe: Recipe, backbone: Backbone) -> Objective:
    encoder = Encoder(backbone, nn.Linear(backbone.channels, recipe.encoder.dim))
    return make_objective(recipe.objective.name, encoder, **recipe.objective.keywords)


def _torch_embed(encoder: nn.Module, device: torch.device) -> Embed:
    encoder.eval()

    @torch.no_grad()
    def embed(pixels: Tensor) -> Tensor:
        images = pixels.to(device).permute(0, 3, 1, 2).float() / 255
        return F.normalize(encoder(images).float(), dim=1)

    return embed


def _runtime_embed(runtime: RuntimeEncoder) -> Embed:
    return lambda pixels: torch.from_numpy(runtime.embed(pixels.numpy()))


def _embed(cache: ImageCache, embed: Embed, progress: Progress) -> Tensor:
    """Embeddings (N, D) of decoded images, on the CPU."""
    parts, total = [], len(cache)
    for pixels in torch.split(cache.pixels, _EMBED_BATCH):
        parts.append(embed(pixels).cpu())
        progress("judge", min(len(parts) * _EMBED_BATCH, total), total)
    return torch.cat(parts)


def _sample(collection: Collection, cache: ImageCache, spec: PixelSpec) -> Pixels:
    """Real images at the model's own spec: what the export is checked on."""
    sources = _spread(collection, cache, PARITY_IMAGES)
    return np.stack([decoded.pixels for decoded in decode_all(sources, spec) if decoded.pixels is not None])


def _spread(collection: Collection, cache: ImageCache, count: int) -> list[Source]:
    """Sources of at most `count` images, spread over the training set."""
    by_item = {source.item: source for source in collection.sources}
    step = max(1, len(cache) // count)
    return [by_item[item] for item in cache.items[::step][:count]]


def _origin(recipe: Recipe, backbone: Backbone, cache: ImageCache) -> Origin:
    return Origin(
        backbone=recipe.encoder.backbone,
        weights=recipe.encoder.weights,
        objective=recipe.objective.name,
        recipe=to_dict(recipe),
        images=len(cache),
        licence=backbone.licence,
    )


def _pictures(
    shown: ImageCache, judge: _Judge | None, known: Labels | None, spec: PixelSpec, before: Tensor, after: Tensor
) -> Shown:
    return Shown(
        pixels=shown.pixels,
        aspect=shown.aspect if spec.fit == "squash" else torch.ones(len(shown)),  # a crop is a square of the image
        items=shown.items,
        classes=judge.classes if judge else None,
        class_names=known.class_names if known else (),
        is_query=judge.is_query if judge else None,
        frozen=before,
        trained=after,
    )


def _tell(
    run: Path, done: TrainReport, recipe: Recipe, environment: dict[str, Any], shown: Shown, device: torch.device
) -> TrainReport:
    """Write the report of a run whose model is registered: a disk that fails now costs the report alone."""
    facts = RunFacts(
        name=run.name,
        model=done.model.id,
        recipe=recipe,
        environment=environment,
        history=read_log(run),
        frozen=done.frozen.to_dict() if done.frozen else None,
        trained=done.trained.to_dict() if done.trained else None,
        shown=shown,
        images=done.images,
        skipped=done.skipped,
        warnings=(*done.warnings, *(f"labelled, but not there: {path}" for path in done.unknown_labels)),
        images_per_s=done.images_per_s,
        seconds=done.seconds,
        peak_memory=peak_memory(device),
    )
    try:
        write_report(run / REPORT, facts)
    except OSError as error:
        return dataclasses.replace(done, warnings=(*done.warnings, f"the report could not be written: {error}"))
    return dataclasses.replace(done, report=run / REPORT)


def _last_recall_at_1(run: Path) -> float | None:
    found: list[float] = [line["recall_at_1"] for line in read_log(run) if "recall_at_1" in line]
    return found[-1] if found else None


def _forget_pixels(run: Path) -> None:
    """Remove the decoded pixels of a finished run: by far its largest files, and made again by decoding."""
    for file in (*run.glob("*.u8"), *(path.with_suffix(".json") for path in run.glob("*.u8"))):
        file.unlink()


class _Clock:
    """Seconds by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        """End a stage."""
        now = time.perf_counter()
        self.seconds[stage] = now - self._last
        self._last = now
