"""One training run from images to a registered model."""

import dataclasses
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainer import report
from trainer.choice import Choice
from trainer.distributed import check_shares, from_main, is_main, joined, wait_for_main
from trainer.environment import choose_device, peak_memory, record_environment
from trainer.given import Given, read_given
from trainer.images import Progress, all_the_same
from trainer.judging import Score, collapsed, judge_rest, judge_start, measured
from trainer.labels import LabelsError
from trainer.log import Clock, read_log
from trainer.loop import train as run_loop
from trainer.memory import keep_freed_memory
from trainer.objective import Objective
from trainer.objectives import objective_class
from trainer.recipe import Recipe
from trainer.recipe_files import RecipeError
from trainer.report_cases import Shown
from trainer.run_directory import (
    doubted_are_kept,
    finish_run,
    forget_pixels,
    new_run,
    recipe_of,
    resume_run,
    sole_process,
    told_how_to_go_on,
)
from trainer.stages import (
    Decoded,
    Setting,
    Warn,
    decode,
    export_scored,
    learn,
    learn_from_labels_alone,
    objective_of,
)
from trainer.start import Start, begin
from trainer.torchvision_sets import named_set
from trainer.train_report import TrainReport


def train(
    images: Path,
    *,
    also: Sequence[Path] = (),
    models: Path,
    runs: Path,
    recipe: Recipe,
    labels: Path | None = None,
    teach: bool = False,
    keep_doubted: bool = False,
    baseline: bool = False,
    datasets: Path = Path("datasets"),
    device: str = "auto",
    name: str | None = None,
    resume: str | None = None,
    profile: bool = False,
    progress: Progress,
    warn: Warn = lambda _: None,
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
        keep_doubted: learn from labels too that are likely wrong by what the run starts from, see
            `trainer.label_noise`; a resumed run goes on as it began.
        baseline: learn from the same labels alone too, to judge what the other images are worth; with `teach`, and
            where there is a split to judge on. It takes as long again.
        datasets: where sets of torchvision are kept.
        device: auto, cpu or cuda.
        name: of the new run; made of the time, the objective and the seed where it is not given.
        resume: name of an unfinished run in `runs` to go on with.
        profile: find out where the time of training steps goes, and write a trace of some into the run.
        progress: called with a stage, how much of it is done, and its total.
        warn: called with a sentence as soon as something is found wrong, mostly with the images or labels; the report
            has all of it too.

    Raises:
        SourceError: a collection can't be read, or fewer than two of its images can be decoded.
        DataSetError: torchvision has no such set, or it can't be had.
        LabelsError: the labels can't be used.
        RunError: there is no such run or device, there is a run of the new one's name, or another process is at work
            on it, or it is to go on with labels otherwise than it began.
        RunFinished: the run to go on with is at its end.
        WeightsError: the backbone's weights can't be had.
        RecipeError: its objective needs labels, and there are none to learn from.
        StartError, ManifestError: the recipe's model can't be started from.
        TrainingError, CheckpointError: training can't go on.
        ParityError: the exported model does not reproduce the trained one.
        DistributedError: there are more processes than GPUs, or they can't share the steps equally.
        RunStopped: the disk is full or fails.
        ValueError: there is no such backbone; a keyword of the objective is out of its range, or it can't learn from
            batches of this size or from these labels; or no image to judge on has another of its class to find.
    """
    keep_freed_memory()
    with joined(choose_device(device)) as chosen:
        begun = resume_run(runs, resume, models) if resume else None
        if begun:
            keep_doubted = doubted_are_kept(begun, teach=teach, keep_doubted=keep_doubted)
        images, labels = from_main(partial(named_set, images, labels, datasets, progress))
        more = [from_main(partial(named_set, further, None, datasets, progress))[0] for further in also]
        given = read_given([images, *more], labels, teach, keep_doubted)
        recipe = recipe_of(begun) if begun else recipe
        _check_taught(recipe, given)
        baseline = baseline and given.taught is not None and given.judged is not None
        # First of all: a recipe that can't be begun must cost neither the time of decoding nor the run's name.
        start = begin(recipe, models, chosen)
        objective = objective_of(recipe, start.encoder)
        _check_classes(recipe, objective, given)
        if given.taught is None and not begun:  # else the loop can tell, when it knows labels and position
            check_shares(objective.step_sizes, recipe.run.batch_size)
        run = begun or from_main(lambda: new_run(runs, recipe, name, teach=teach, keep_doubted=keep_doubted))
        if not is_main():
            progress, warn = lambda *_: None, lambda _: None
        setting = Setting(run, models, recipe, chosen, progress, warn)
        with told_how_to_go_on(run), sole_process(run) if is_main() else nullcontext():
            if not is_main():
                _assist(setting, given, objective, baseline)
            return from_main(lambda: _lead(setting, given, start, objective, profile, baseline))


def _check_taught(recipe: Recipe, given: Given) -> None:
    name = recipe.objective.name
    if given.taught is None and objective_class(name).needs_labels:
        earlier = recipe.encoder.from_model
        whose = f"model {earlier} was learned by {name}, which needs" if earlier else f"the objective {name} needs"
        raise RecipeError(
            f"{whose} labels to learn from, and this run has none: name another recipe (`kinsight train --recipe "
            f"stml`), or learn on with labels (`kinsight finetune`, `kinsight rebuild --finetune`)"
        )


def _check_classes(recipe: Recipe, objective: Objective, given: Given) -> None:
    if objective.needs_classes and given.taught is not None and given.taught.apart is not None:
        raise LabelsError(
            f"{given.table} has pairs, which tell no classes, and objective {recipe.objective.name}, as it is set, "
            f"needs these: label classes, or learn by the method stml-semi with its default loss, multi_similarity"
        )


def _assist(setting: Setting, given: Given, objective: Objective, baseline: bool) -> None:
    """What a process does that is not the main one: train with it."""
    wait_for_main()  # until it has decoded the images
    cache = given.training_set(setting.recipe, setting.run, setting.progress)
    known = given.without(from_main(tuple)).known(cache.items)  # the main process says what is left out
    join = partial(run_loop, images=cache, known=known, device=setting.device, progress=setting.progress)
    join(objective, recipe=setting.recipe, directory=setting.run)
    if baseline and setting.has_other_images:
        alone = setting.of_labels_alone()
        join(alone.begun(), recipe=alone.recipe, directory=alone.run)


def _lead(
    setting: Setting, given: Given, start: Start, objective: Objective, profile: bool, baseline: bool
) -> TrainReport:
    """What the main process does: all stages, of which it tells."""
    clock = Clock()
    run, models, device, progress = setting.run, setting.models, setting.device, setting.progress
    environment = record_environment(run, device, setting.recipe.run.seed)
    setting.told(*given.warnings_of_unknown)
    warnings = setting.told(*given.warnings, *start.warnings)
    decoded = decode(setting, given)
    warnings += setting.told(*all_the_same(decoded.training))
    clock.lap("decode")
    before = judge_start(start, setting.recipe, decoded.shown, decoded.judge, device, progress)
    rest = judge_rest(start, setting.recipe, decoded.rest, device, progress) if decoded.rest else None
    doubts = given.doubts(start, setting.spec, run, device, progress)
    warnings += setting.told(*before.warnings, *doubts.warnings)
    given = given.without(from_main(lambda: doubts.left_out))
    clock.lap("frozen")
    choice = Choice(run)
    warnings += setting.told(*choice.warnings)
    outcome = learn(setting, given, decoded, objective, choice, kept=doubts.kept, profile=profile)
    warnings += setting.told(*outcome.warnings)
    clock.lap("train")
    score = Score(decoded.shown, decoded.judge, before, progress)
    model = export_scored(setting, given, decoded, start, outcome.encoder, score)
    warnings += setting.told(*collapsed(before.embeddings, score.embeddings))
    clock.lap("export")
    supervised = None
    if baseline and setting.has_other_images:
        supervised = learn_from_labels_alone(setting, given, decoded, kept=doubts.kept)
    clock.lap("baseline")
    done = TrainReport(
        model=model,
        run=run.name,
        report=None,
        epoch=choice.epoch or outcome.epochs,
        last_recall_at_1=_last_recall_at_1(run),
        images=len(decoded.training),
        skipped=decoded.skipped,
        duplicates=decoded.duplicates,
        unknown_labels=given.unknown,
        frozen=before.frozen,
        start=before.start,
        trained=score.metrics,
        supervised=measured(supervised, decoded.judge, device, progress),
        rest=rest.judged(models / model.id, supervised, device, progress) if rest else {},
        suspects=doubts.suspects,
        compared=doubts.compared,
        wrong_share=doubts.noise.wrong_share,
        left_out=doubts.left_out,
        warnings=warnings,
        images_per_s=outcome.images_per_s,
        seconds=clock.seconds,
        profile=outcome.profile,
    )
    done = _tell(setting, done, environment, _shown(setting, given, decoded, before.embeddings, score.embeddings))
    forget_pixels(run)
    if done.report:  # else going on with the run writes it, once it can be written
        finish_run(run, model.id)
    return done


def _shown(setting: Setting, given: Given, decoded: Decoded, before: Tensor, after: Tensor) -> Shown:
    cache, judge = decoded.shown, decoded.judge
    whole = setting.spec.fit == "squash"  # a crop is a square of the image
    return Shown(
        pixels=cache.pixels,
        aspect=cache.aspect if whole else torch.ones(len(cache)),
        items=cache.items,
        classes=judge.classes if judge else None,
        class_names=given.judged.class_names if given.judged else (),
        is_query=judge.is_query if judge else None,
        before=before,
        trained=after,
    )


def _tell(setting: Setting, done: TrainReport, environment: dict[str, Any], shown: Shown) -> TrainReport:
    """Write the report of a run whose model is registered: a disk that fails now costs the report alone."""
    before = done.start or done.frozen
    facts = report.RunFacts(
        name=done.run,
        model=done.model.id,
        recipe=setting.recipe,
        environment=environment,
        history=read_log(setting.run),
        before=before.to_dict() if before else None,
        judged=done.tables(),
        trained=done.trained.to_dict() if done.trained else None,
        shown=shown,
        images=done.images,
        skipped=done.skipped,
        warnings=(*done.warnings, *(f"labelled, but not there: {path}" for path in done.unknown_labels)),
        images_per_s=done.images_per_s,
        seconds=done.seconds,
        epoch=done.epoch,
        peak_memory=peak_memory(setting.device),
    )
    try:
        report.write(setting.run / report.REPORT, facts)
    except OSError as error:
        unwritten = setting.told(f"the report could not be written: {error}")
        return dataclasses.replace(done, warnings=done.warnings + unwritten)
    return dataclasses.replace(done, report=setting.run / report.REPORT)


def _last_recall_at_1(run: Path) -> float | None:
    found: list[float] = [line["recall_at_1"] for line in read_log(run) if "recall_at_1" in line]
    return found[-1] if found else None
