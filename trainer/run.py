"""One training run from images to a registered model."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from indexer.encoder import Encoder as RuntimeEncoder
from indexer.manifest import ModelManifest
from indexer.pixels import Pixels, PixelSpec
from indexer.sources import Collection, Duplicates, decode_all
from trainer import report
from trainer.choice import Choice, neighbour_contrast
from trainer.distributed import from_main, is_main, joined, wait_for_main
from trainer.encoders import Encoder
from trainer.environment import choose_device, peak_memory, record_environment
from trainer.evaluate import Metrics
from trainer.export import PARITY_IMAGES, Origin, export
from trainer.given import Given, read_given
from trainer.images import ImageCache, Progress, all_the_same, duplicates, open_collections
from trainer.judging import (
    Judge,
    Score,
    centre,
    embed_images,
    judge_start,
    judging_set,
    neighbour_precision,
    sample_set,
    spread,
    torch_embed,
)
from trainer.labels import Labels
from trainer.log import Clock, read_log
from trainer.loop import train as run_loop
from trainer.memory import keep_freed_memory
from trainer.objective import Objective
from trainer.objectives import make_objective
from trainer.profiling import Profile
from trainer.recipe import Recipe, to_dict
from trainer.report_cases import Shown
from trainer.run_directory import forget_pixels, new_run, recipe_of, resume_run, told_how_to_go_on
from trainer.start import Start, begin
from trainer.suspects import Suspect
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
        frozen: metrics of the backbone as it was before any training; None without labels.
        start: metrics of the model that the run started from; None where it started from pretrained weights.
        trained: metrics of the exported model; None without labels.
        suspects: labels to learn from that disagree with what the run started from, the surest first.
        compared: how many labelled images could agree or disagree.
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
    start: Metrics | None
    trained: Metrics | None
    suspects: tuple[Suspect, ...]
    compared: int
    warnings: tuple[str, ...]
    images_per_s: float
    seconds: Mapping[str, float]
    profile: Profile | None

    @property
    def judged(self) -> dict[str, Metrics]:
        """The metrics of each of `frozen`, `start` and `trained` that was judged, by these names."""
        named = {"frozen": self.frozen, "start": self.start, "trained": self.trained}
        return {who: metrics for who, metrics in named.items() if metrics}

    @property
    def beats_frozen(self) -> bool | None:
        """Whether training raised R@1 above the frozen backbone's; None without labels."""
        return self._beats(self.frozen)

    @property
    def beats_start(self) -> bool | None:
        """Whether training raised R@1 above that of the model that it started from; None without labels or model."""
        return self._beats(self.start)

    def _beats(self, earlier: Metrics | None) -> bool | None:
        return self.trained.recall_at_1 > earlier.recall_at_1 if earlier and self.trained else None


def train(
    images: Path,
    *,
    also: Sequence[Path] = (),
    models: Path,
    runs: Path,
    recipe: Recipe,
    labels: Path | None = None,
    teach: bool = False,
    datasets: Path = Path("datasets"),
    device: str = "auto",
    name: str | None = None,
    resume: str | None = None,
    profile: bool = False,
    progress: Progress,
) -> TrainReport:
    """Learn a metric from a collection of images, most or all of them unlabelled, and register the model.

    In processes that torchrun started, all call this alike and train together; the main one does the rest.

    Args:
        images: what `indexer.sources.open_collection` takes, or `torchvision:NAME`, see `trainer.torchvision_sets`.
        also: further collections of either kind, learned from together with the first.
        models: the store's directory of models.
        runs: the store's directory of runs.
        recipe: what to learn with; a resumed run goes on with its own.
        labels: a table `path,class_id[,split]`, used to judge and never to learn; a set of torchvision has its own.
        teach: learn from the labels too, of the split `train` where there are splits, and judge with the others only;
            they may also be pairs, see `trainer.known.read_taught`.
        datasets: where sets of torchvision are kept.
        device: auto, cpu or cuda.
        name: of the new run; made of the time, the objective and the seed where it is not given.
        resume: name of an unfinished run in `runs` to go on with.
        profile: find out where the time of training steps goes, and write a trace of some into the run.
        progress: called with a stage, how much of it is done, and its total.

    Raises:
        SourceError: a collection can't be read, or fewer than two of its images can be decoded.
        DataSetError: torchvision has no such set, or it can't be had.
        LabelsError: the labels can't be used.
        RunError: there is no such run or device, or there is a run of the new one's name.
        WeightsError: the backbone's weights can't be had.
        StartError, ManifestError: the recipe's model can't be started from.
        TrainingError, CheckpointError: training can't go on.
        ParityError: the exported model does not reproduce the trained one.
        DistributedError: there are more processes than GPUs.
        RunStopped: the disk is full or fails.
    """
    keep_freed_memory()
    with joined(choose_device(device)) as chosen:
        images, labels = from_main(partial(named_set, images, labels, datasets, progress))
        more = [from_main(partial(named_set, further, None, datasets, progress))[0] for further in also]
        given = read_given(open_collections([images, *more]), labels, teach)
        run = from_main(lambda: resume_run(runs, resume) if resume else new_run(runs, recipe, name))
        with told_how_to_go_on(run):
            if not is_main():
                _assist(given, run, models, chosen)
            return from_main(lambda: _learn(given, run, models, chosen, progress, profile))


def _assist(given: Given, run: Path, models: Path, chosen: torch.device) -> None:
    """What a process does that is not the main one: train with it."""
    recipe = recipe_of(run)
    wait_for_main()  # until it has decoded the images
    cache = given.training_set(recipe, run, lambda *_: None)
    objective = _objective(recipe, begin(recipe, models, chosen).encoder)
    known = given.known(cache.items)
    run_loop(objective, cache, recipe, run, known=known, device=chosen, progress=lambda *_: None)


def _learn(
    given: Given,
    run: Path,
    models: Path,
    chosen: torch.device,
    progress: Progress,
    profile: bool,
) -> TrainReport:
    clock = Clock()
    recipe = recipe_of(run)
    environment = record_environment(run, chosen, recipe.run.seed)
    spec = PixelSpec(size=recipe.data.size, fit=recipe.data.fit, crop_fraction=recipe.data.crop_fraction)
    collection, known = given.collection, given.judged
    cache = given.training_set(recipe, run, progress)
    wait_for_main()  # what it decoded, the others read
    judge = judging_set(known, collection, spec, run / "judged.u8", chosen, progress) if known else None
    sample = sample_set(collection, cache, spec, run / "sample.u8", progress)
    shown = judge.cache if judge else sample
    clock.lap("decode")
    start = begin(recipe, models, chosen)
    objective = _objective(recipe, start.encoder)  # before judging, which must not decide what it draws at random
    before = judge_start(start, recipe, shown, judge, chosen, progress)
    suspects, compared = given.suspects(start, spec, run, chosen, progress)
    clock.lap("frozen")

    choice = Choice(run)
    after_epoch = partial(_after_epoch, recipe, objective.centred, choice, sample, judge, known, chosen, progress)
    outcome = run_loop(
        objective,
        cache,
        recipe,
        run,
        device=chosen,
        progress=progress,
        known=given.known(cache.items),
        on_epoch=after_epoch,
        profile=profile,
    )
    if choice.epoch:
        choice.take(outcome.encoder)
    clock.lap("train")

    score = Score(shown, judge, before, progress)
    progress("export", 0, 1)
    parity, origin = _sample(collection, cache, spec), _origin(recipe, start, cache)
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
        unknown_labels=given.unknown,
        frozen=before.frozen,
        start=before.start,
        trained=score.metrics,
        suspects=tuple(suspects),
        compared=compared,
        warnings=(
            *given.warnings,
            *all_the_same(cache),
            *start.warnings,
            *before.warnings,
            *outcome.warnings,
            *choice.warnings,
        ),
        images_per_s=outcome.images_per_s,
        seconds=clock.seconds,
        profile=outcome.profile,
    )
    shown_to_all = _shown(sample, judge, known, spec, before.embeddings, score.embeddings)
    done = _tell(run, done, recipe, environment, shown_to_all, chosen)
    forget_pixels(run)
    return done


def _after_epoch(
    recipe: Recipe,
    centred: bool,
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
    if centred:
        centre(encoder, sample, device, progress)
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


def _objective(recipe: Recipe, encoder: Encoder) -> Objective:
    return make_objective(recipe.objective.name, encoder, **recipe.objective.keywords)


def _sample(collection: Collection, cache: ImageCache, spec: PixelSpec) -> Pixels:
    """Real images at the model's own spec: what the export is checked on."""
    sources = spread(collection, cache, PARITY_IMAGES)
    return np.stack([decoded.pixels for decoded in decode_all(sources, spec) if decoded.pixels is not None])


def _origin(recipe: Recipe, start: Start, cache: ImageCache) -> Origin:
    return Origin(
        backbone=recipe.encoder.backbone,
        weights=recipe.encoder.weights,
        objective=recipe.objective.name,
        recipe=to_dict(recipe),
        images=len(cache),
        licence=start.licence,
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
        before=before,
        trained=after,
    )


def _tell(
    run: Path, done: TrainReport, recipe: Recipe, environment: dict[str, Any], shown: Shown, device: torch.device
) -> TrainReport:
    """Write the report of a run whose model is registered: a disk that fails now costs the report alone."""
    before = done.start or done.frozen
    facts = report.RunFacts(
        name=run.name,
        model=done.model.id,
        recipe=recipe,
        environment=environment,
        history=read_log(run),
        before=before.to_dict() if before else None,
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
