"""The stages of a training run: its images are decoded, learned from epoch by epoch, and a model is exported."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import Tensor

from indexer.encoder import Encoder as RuntimeEncoder
from indexer.manifest import ModelManifest
from indexer.pixels import Pixels, PixelSpec
from indexer.sources import Duplicates
from trainer.choice import Choice, neighbour_contrast
from trainer.distributed import wait_for_main
from trainer.encoders import Encoder
from trainer.export import PARITY_IMAGES, Origin, export
from trainer.given import Given
from trainer.images import ImageCache, Progress, duplicates
from trainer.judging import (
    Judge,
    Score,
    centre,
    embed_images,
    judging_set,
    neighbour_precision,
    rest_set,
    sample_set,
    spread,
    torch_embed,
)
from trainer.loop import Outcome, train
from trainer.objective import Objective
from trainer.objectives import make_objective
from trainer.recipe import Recipe, to_dict, with_objective
from trainer.run_directory import list_skipped
from trainer.start import Start, begin

_LABELS_ALONE = "supervised"  # the objective of the baseline, and its directory within a run's

Warn = Callable[[str], None]


@dataclass(frozen=True)
class Setting:
    """Where and with what a run works, and whom it tells."""

    run: Path
    models: Path
    recipe: Recipe
    device: torch.device
    progress: Progress
    warn: Warn

    def told(self, *sentences: str) -> tuple[str, ...]:
        """Warn of what was found, at once; the same sentences, for the report."""
        for sentence in sentences:
            self.warn(sentence)
        return sentences

    @property
    def spec(self) -> PixelSpec:
        """What images are decoded to for the model."""
        data = self.recipe.data
        return PixelSpec(size=data.size, fit=data.fit, crop_fraction=data.crop_fraction)

    @property
    def has_other_images(self) -> bool:
        """Whether the run learns from more than its labels, so that labels alone are something else."""
        return self.recipe.objective.name != _LABELS_ALONE

    def of_labels_alone(self) -> "Setting":
        """The same with the supervised objective, in a directory within the run's."""
        recipe = with_objective(self.recipe, _LABELS_ALONE)
        run = self.run / _LABELS_ALONE
        run.mkdir(exist_ok=True)
        return Setting(run, self.models, recipe, self.device, partial(_within_baseline, self.progress), self.warn)

    def begun(self) -> Objective:
        """Its objective around what it starts from."""
        return objective_of(self.recipe, begin(self.recipe, self.models, self.device).encoder)


def _within_baseline(progress: Progress, stage: str, done: int, total: int) -> None:
    progress(f"baseline {stage}", done, total)


@dataclass(frozen=True)
class Decoded:
    """The images of a run: to learn from, to judge on, and a sample of the former to compare epochs on."""

    training: ImageCache
    judge: Judge | None
    sample: ImageCache
    rest: Judge | None

    @property
    def shown(self) -> ImageCache:
        """What the report shows."""
        return self.judge.cache if self.judge else self.sample

    @property
    def count(self) -> int:
        """How many images there are to learn from and to judge on, those that were skipped included."""
        return len({*self.training.items, *(self.judge.cache.items if self.judge else ())}) + len(self.skipped)

    @property
    def skipped(self) -> tuple[tuple[str, str], ...]:
        """(item, reason) of each that could not be decoded, once where it is to be learned from and judged on."""
        return tuple(dict((*self.training.skipped, *(self.judge.cache.skipped if self.judge else ()))).items())

    @cached_property
    def duplicates(self) -> Duplicates:
        """Those to learn from or to judge on whose files are the same."""
        return duplicates(self.training, self.judge.cache if self.judge else None)


def objective_of(recipe: Recipe, encoder: Encoder) -> Objective:
    """The objective of a recipe around an encoder; raises ValueError where the recipe's batches are none for it."""
    objective = make_objective(recipe.objective.name, encoder, **recipe.objective.keywords)
    objective.check_batch(recipe.run.batch_size)
    return objective


def decode(setting: Setting, given: Given) -> Decoded:
    """Decode the images of a run, the main process first; raises SourceError where these are too few."""
    run, spec, progress = setting.run, setting.spec, setting.progress
    cache = given.training_set(setting.recipe, run, progress)
    wait_for_main()  # what it decoded, the others read
    judge = rest = None
    if given.judged:
        rest = rest_set(given.judged, given.collection, spec, run / "rest.u8", setting.device, progress)
        judge = judging_set(given.judged, given.collection, spec, run / "judged.u8", setting.device, progress)
    sample = sample_set(given.collection, cache, spec, run / "sample.u8", progress)
    decoded = Decoded(cache, judge, sample, rest)
    _tell_of(decoded, setting)
    return decoded


def _tell_of(decoded: Decoded, setting: Setting) -> None:
    table = list_skipped(setting.run, decoded.skipped)
    if decoded.skipped:
        item, reason = decoded.skipped[0]
        setting.warn(
            f"skipped {len(decoded.skipped):,} of the {decoded.count:,} images, for example {item}: {reason}; "
            f"{table} lists them all"
        )
    if decoded.duplicates.copies:
        setting.warn(decoded.duplicates.summary)


def learn_from_labels_alone(setting: Setting, given: Given, decoded: Decoded, *, kept: float) -> Encoder:
    """What learns from the same labels alone, from the same start, by the same recipe and for as many epochs."""
    alone = setting.of_labels_alone()
    return learn(alone, given, decoded, alone.begun(), Choice(alone.run), kept=kept).encoder


def learn(
    setting: Setting,
    given: Given,
    decoded: Decoded,
    objective: Objective,
    choice: Choice,
    *,
    kept: float,
    profile: bool = False,
) -> Outcome:
    """Train, and give the outcome the encoder that was chosen; `kept` is as of `trainer.loop.train`."""
    outcome = train(
        objective,
        decoded.training,
        setting.recipe,
        setting.run,
        device=setting.device,
        progress=setting.progress,
        known=given.known(decoded.training.items),
        kept=kept,
        on_epoch=partial(_after_epoch, setting, given, decoded, objective, choice),
        profile=profile,
    )
    if choice.epoch:
        choice.take(outcome.encoder)
    return outcome


def _after_epoch(
    setting: Setting,
    given: Given,
    decoded: Decoded,
    objective: Objective,
    choice: Choice,
    epoch: int,
    encoder: Encoder,
) -> dict[str, float]:
    """What is logged of an epoch's encoder, which is offered for choice."""
    device, progress, sample = setting.device, setting.progress, decoded.sample
    if objective.centred:
        centre(encoder, sample, device, progress)
    embed = torch_embed(encoder, device)
    sampled = embed_images(sample, embed, progress, device)
    logged = {"contrast": neighbour_contrast(sampled)}
    if setting.recipe.run.choose == "contrast":
        choice.offer(epoch, encoder, logged["contrast"])
    if given.judged:
        logged |= _labels_worth(setting, decoded, objective, sampled, given.judged.classes(sample.items))
    if decoded.judge:
        judged = embed_images(decoded.judge.cache, embed, progress, device)
        logged |= decoded.judge.measure(judged, clusters=False).to_dict()
    return logged


def _labels_worth(
    setting: Setting, decoded: Decoded, objective: Objective, sampled: Tensor, classes: Tensor
) -> dict[str, float]:
    """How often the sample's neighbours are of one class, and the images that the objective labels as alike."""
    sample, device = decoded.sample, setting.device
    row_of = {item: row for row, item in enumerate(decoded.training.items)}
    labelled = objective.pseudo_labels(
        lambda module: embed_images(sample, torch_embed(module, device), setting.progress, device),
        torch.tensor([row_of[item] for item in sample.items]),
    )
    found = {"neighbour_precision": neighbour_precision(sampled @ sampled.T, classes)}
    if labelled is not None:
        found["pseudo_label_precision"] = neighbour_precision(labelled.cpu(), classes)
    return {name: precision for name, precision in found.items() if precision is not None}


def export_scored(
    setting: Setting, given: Given, decoded: Decoded, start: Start, encoder: Encoder, score: Score
) -> ModelManifest:
    """Register the encoder as a model, scored."""
    setting.progress("export", 0, 1)
    sample = _sample(decoded.sample)
    origin = _origin(setting.recipe, start, given, decoded.training)
    model = export(encoder, setting.spec, sample, setting.models, origin, score)
    if not len(score.embeddings):  # the store had this very model already
        score(RuntimeEncoder.open(setting.models / model.id, device="cpu"))
    setting.progress("export", 1, 1)
    return model


def _sample(cache: ImageCache) -> Pixels:
    """Real images at the model's own spec: what the export is checked on, decoded while they were there."""
    return cache.pixels[spread(len(cache), PARITY_IMAGES)].numpy()


def _origin(recipe: Recipe, start: Start, given: Given, cache: ImageCache) -> Origin:
    known = given.known(cache.items)
    return Origin(
        backbone=recipe.encoder.backbone,
        weights=recipe.encoder.weights,
        objective=recipe.objective.name,
        recipe=to_dict(recipe),
        images=len(cache),
        labelled=int((known.label >= 0).sum()) if known else 0,
        licence=start.licence,
    )
