"""One training run from images to a registered model, and the judging of models with labels."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from indexer.encoder import Encoder as RuntimeEncoder
from indexer.manifest import ModelManifest
from indexer.pixels import Pixels, PixelSpec
from indexer.sources import Collection, Duplicates, SourceError, decode_all, open_collection
from trainer import report
from trainer.choice import Choice, neighbour_contrast
from trainer.distributed import from_main, is_main, joined, wait_for_main
from trainer.encoders import Backbone, Encoder, make_backbone
from trainer.environment import peak_memory, record_environment
from trainer.evaluate import RECALL_AT, Metrics, retrieval_metrics
from trainer.export import PARITY_IMAGES, Origin, export
from trainer.images import ImageCache, Labels, Progress, all_the_same, cache_images, duplicates, read_labels
from trainer.judging import (
    Judge,
    embed_images,
    embed_sources,
    judging_set,
    neighbour_precision,
    runtime_embed,
    sample_set,
    spread,
    torch_embed,
)
from trainer.log import Clock, read_log
from trainer.loop import train as run_loop
from trainer.memory import keep_freed_memory
from trainer.objective import Objective
from trainer.objectives import make_objective
from trainer.profiling import Profile
from trainer.recipe import Recipe, to_dict
from trainer.report_cases import Shown
from trainer.run_directory import RunError, forget_pixels, new_run, recipe_of, resume_run, told_how_to_go_on
from trainer.torchvision_sets import named_set


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
        run = from_main(lambda: resume_run(runs, resume) if resume else new_run(runs, recipe))
        with told_how_to_go_on(run):
            if not is_main():
                _assist(images, collection, known, run, chosen)
            return from_main(lambda: _learn(images, collection, known, run, models, chosen, progress, profile))


def _assist(images: Path, collection: Collection, known: Labels | None, run: Path, chosen: torch.device) -> None:
    """What a process does that is not the main one: train with it."""
    recipe = recipe_of(run)
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
    clock = Clock()
    recipe = recipe_of(run)
    environment = record_environment(run, chosen, recipe.run.seed)
    spec = PixelSpec(size=recipe.data.size, fit=recipe.data.fit)
    cache = _training_set(images, collection, known, recipe, run, progress)
    wait_for_main()  # what it decoded, the others read
    judge = judging_set(known, collection, spec, run / "judged.u8", chosen, progress) if known else None
    sample = sample_set(collection, cache, spec, run / "sample.u8", progress)
    shown = judge.cache if judge else sample
    clock.lap("decode")
    backbone = _backbone(recipe, chosen)
    before = embed_images(shown, torch_embed(backbone, chosen), progress)
    frozen = judge.measure(before) if judge else None
    clock.lap("frozen")

    objective = _objective(recipe, backbone)
    choice = Choice(run)
    after_epoch = partial(_after_epoch, recipe, choice, sample, judge, known, chosen, progress)
    outcome = run_loop(
        objective, cache, recipe, run, device=chosen, progress=progress, on_epoch=after_epoch, profile=profile
    )
    if recipe.run.choose == "contrast":
        choice.take(outcome.encoder)
    clock.lap("train")

    score = _Score(shown, judge, frozen, progress)
    progress("export", 0, 1)
    parity, origin = _sample(collection, cache, spec), _origin(recipe, backbone, cache)
    model = export(outcome.encoder, spec, parity, models, origin, score)
    if not len(score.embeddings):  # the store had this very model already
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
        trained=score.metrics,
        warnings=(*collection.warnings, *all_the_same(cache), *outcome.warnings),
        images_per_s=outcome.images_per_s,
        seconds=clock.seconds,
        profile=outcome.profile,
    )
    done = _tell(run, done, recipe, environment, _shown(sample, judge, known, spec, before, score.embeddings), chosen)
    forget_pixels(run)
    return done


def _after_epoch(
    recipe: Recipe,
    choice: Choice,
    sample: ImageCache,
    judge: Judge | None,
    known: Labels | None,
    device: torch.device,
    progress: Progress,
    epoch: int,
    encoder: Encoder,
) -> dict[str, float]:
    """What is logged of an epoch's encoder, which is offered for choice."""
    embed = torch_embed(encoder, device)
    sampled = embed_images(sample, embed, progress)
    logged = {"contrast": neighbour_contrast(sampled)}
    if recipe.run.choose == "contrast":
        choice.offer(epoch, encoder, logged["contrast"])
    precision = neighbour_precision(sampled, known.classes(sample.items)) if known else None
    if precision is not None:
        logged["neighbour_precision"] = precision
    judged = judge.measure(embed_images(judge.cache, embed, progress), clusters=False).to_dict() if judge else {}
    return logged | judged


class _Score:
    """Judges the exported model, and keeps its embeddings and metrics for the run's report."""

    def __init__(self, shown: ImageCache, judge: Judge | None, frozen: Metrics | None, progress: Progress):
        self._shown, self._judge, self._frozen, self._progress = shown, judge, frozen, progress
        self.embeddings = torch.empty(0)
        self.metrics: Metrics | None = None

    def __call__(self, runtime: RuntimeEncoder) -> dict[str, float]:
        """What the model's manifest says of it; nothing without labels."""
        self.embeddings = embed_images(self._shown, runtime_embed(runtime), self._progress)
        if self._judge is None or self._frozen is None:
            return {}
        self.metrics = self._judge.measure(self.embeddings)
        named = (("frozen", self._frozen), ("trained", self.metrics))
        return {f"{who}.{name}": value for who, metrics in named for name, value in metrics.to_dict().items()}


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
    gone = [(path, f"labelled, but not in {images}") for path in known.unknown]
    embeddings, items, skipped = embed_sources(sources, runtime, progress)
    if not items:
        reason = [*gone, *skipped][0][1]
        raise SourceError(f"none of the {len(sources):,} labelled images in {images} can be decoded: {reason}")
    metrics = retrieval_metrics(
        embeddings.to(chosen),
        known.classes(items),
        is_query=known.is_query(items),
        recall_at=recall_at,
    )
    return metrics, (*gone, *skipped)


def choose_device(name: str) -> torch.device:
    """The device of this name; `auto` is CUDA where it is live. Raises RunError where it is not to be had."""
    if name not in ("auto", "cpu", "cuda"):
        raise RunError(f"device is {name!r}; it must be auto, cpu or cuda")
    live = torch.cuda.is_available()
    if name == "cuda" and not live:
        raise RunError("device is cuda, but torch sees no GPU; use --device cpu, or run `kinsight doctor`")
    return torch.device("cuda" if live and name != "cpu" else "cpu")


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


def _backbone(recipe: Recipe, device: torch.device) -> Backbone:
    torch.manual_seed(recipe.run.seed)
    part = recipe.encoder
    backbone = make_backbone(part.backbone, part.weights, size=recipe.data.size, freeze_bn=part.freeze_bn)
    return backbone.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def _objective(recipe: Recipe, backbone: Backbone) -> Objective:
    encoder = Encoder(backbone, nn.Linear(backbone.channels, recipe.encoder.dim))
    return make_objective(recipe.objective.name, encoder, **recipe.objective.keywords)


def _sample(collection: Collection, cache: ImageCache, spec: PixelSpec) -> Pixels:
    """Real images at the model's own spec: what the export is checked on."""
    sources = spread(collection, cache, PARITY_IMAGES)
    return np.stack([decoded.pixels for decoded in decode_all(sources, spec) if decoded.pixels is not None])


def _origin(recipe: Recipe, backbone: Backbone, cache: ImageCache) -> Origin:
    return Origin(
        backbone=recipe.encoder.backbone,
        weights=recipe.encoder.weights,
        objective=recipe.objective.name,
        recipe=to_dict(recipe),
        images=len(cache),
        licence=backbone.licence,
    )


def _shown(
    sample: ImageCache, judge: Judge | None, known: Labels | None, spec: PixelSpec, before: Tensor, after: Tensor
) -> Shown:
    cache = judge.cache if judge else sample
    return Shown(
        pixels=cache.pixels,
        aspect=cache.aspect if spec.fit == "squash" else torch.ones(len(cache)),  # a crop is a square of the image
        items=cache.items,
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
    facts = report.RunFacts(
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
        epoch=done.epoch,
        peak_memory=peak_memory(device),
    )
    try:
        report.write(run / report.REPORT, facts)
    except OSError as error:
        return dataclasses.replace(done, warnings=(*done.warnings, f"the report could not be written: {error}"))
    return dataclasses.replace(done, report=run / report.REPORT)


def _last_recall_at_1(run: Path) -> float | None:
    found: list[float] = [line["recall_at_1"] for line in read_log(run) if "recall_at_1" in line]
    return found[-1] if found else None
