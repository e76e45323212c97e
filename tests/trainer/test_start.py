"""Runs that start from a model of the store, and collections that are learned from together."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from indexer import pixels
from indexer.encoder import Encoder as RuntimeEncoder
from indexer.manifest import CorruptFile, ManifestError, ModelManifest, publish, read_model
from indexer.store import Store
from tests.conftest import School, copied
from tests.trainer import network, small
from tests.trainer.small import CPU, silent
from trainer.export import HEAD
from trainer.images import open_collections
from trainer.judging import evaluate
from trainer.objectives.stml import STML
from trainer.recipe import Recipe, override
from trainer.run import train
from trainer.run_directory import RunError
from trainer.start import StartError, begin, recipe_from, starting_from

ONE_EPOCH = small.one_epoch()


def draw_pictures(folder: Path, count: int) -> Path:
    """A folder of distinct small pictures."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(3)
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8))
        coarse.resize((60, 50), Image.Resampling.BICUBIC).save(folder / f"{number:02d}.png")
    return folder


@pytest.fixture(scope="module")
def learned(tiny_school: School, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a tiny model that was really learned, in a store beside the pictures that it learned from."""
    school = copied(tiny_school, tmp_path_factory.mktemp("learned"))
    return school.store.model(school.model)


@pytest.fixture
def pictures(learned: Path) -> Path:
    """The pictures that `learned` learned from."""
    return learned.parents[2] / "pictures"


def republished(learned: Path, models: Path, **changes: object) -> Path:
    """A copy of a model in another store, with other facts in its manifest."""
    staging = shutil.copytree(learned, models / "staging", ignore=shutil.ignore_patterns("manifest.json"))
    if changes.pop("without_head", False):
        (staging / HEAD).unlink()
    if changes.pop("other_probe", False):
        np.save(staging / "probe.npy", -np.load(staging / "probe.npy"))
    model: ModelManifest = dataclasses.replace(read_model(learned), files={}, **changes)  # type: ignore[arg-type]
    return publish(staging, models / model.id, model)


def embeddings_of(folder: Path, recipe: Recipe, models: Path) -> tuple[torch.Tensor, tuple[str, ...]]:
    """What a run of this recipe begins with gives for the pictures of a folder, and its warnings."""
    spec = read_model(models / str(recipe.encoder.from_model)).pixels
    start = begin(recipe, models, CPU)
    images = np.stack([pixels.decode(path.read_bytes(), spec) for path in sorted(folder.iterdir())])
    views = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        return start.encoder.eval().embed(views), start.warnings


def test_a_run_begins_with_the_embeddings_of_the_model_that_it_starts_from(learned: Path, pictures: Path) -> None:
    """Before any step the encoder gives what the model gives, by the model's own recipe."""
    recipe = recipe_from(learned)
    assert recipe == starting_from(ONE_EPOCH, learned.name)
    found, warnings = embeddings_of(pictures, recipe, learned.parent)
    runtime = RuntimeEncoder.open(learned, device="cpu")
    images = [pixels.decode(path.read_bytes(), runtime.pixels) for path in sorted(pictures.iterdir())]
    expected = torch.from_numpy(runtime.embed(np.stack(images)))
    assert F.cosine_similarity(found, expected).min() > 0.99999
    assert warnings == ()


def test_the_first_epoch_sets_head_g_and_leaves_the_models_head(learned: Path) -> None:
    """Head f is the model's after the objective has set what it sets, and the teacher follows the student."""
    start = begin(recipe_from(learned), learned.parent, CPU)
    head = start.encoder.head.weight.clone()  # type: ignore[operator]
    objective = STML(start.encoder, background_dim=8, head_init="pca").eval()
    drawn = objective.background.weight.clone()
    features = torch.randn(40, head.shape[1])
    objective.before_epoch(lambda _, __=0: features, 20, 2)
    assert torch.equal(objective.encoder.head.weight, head)  # type: ignore[arg-type]
    assert not torch.equal(objective.background.weight, drawn)
    assert torch.equal(objective.teacher[1].weight, objective.background.weight)  # type: ignore[arg-type]


def test_a_run_from_a_model_is_judged_beside_it_and_says_so(learned: Path, pictures: Path, tmp_path: Path) -> None:
    """The report has the metrics of the model that it started from, and the new model's recipe names that one."""
    labels = tmp_path / "labels.csv"
    rows = [f"{pictures / f'{number:02d}.png'},{number % 3}" for number in range(40)]
    labels.write_text("\n".join(["path,class_id", *rows]) + "\n")
    done = train(
        pictures,
        models=learned.parent,
        runs=tmp_path / "r",
        recipe=recipe_from(learned),
        labels=labels,
        name="second",
        progress=silent,
    )
    assert done.run == "second"
    assert list(done.judged) == ["frozen", "start", "trained"]
    assert done.start == evaluate(learned, pictures, labels, progress=silent)[0]
    assert done.model.metrics["start.recall_at_1"] == done.start.recall_at_1
    assert done.model.recipe["encoder"]["from_model"] == learned.name
    card = (learned.parent / done.model.id / "card.md").read_text()
    assert f"Learned on from model {learned.name} with `stml` from 40 images, unlabelled." in card
    assert done.model.id != learned.name
    assert recipe_from(learned.parent / done.model.id).encoder.from_model == done.model.id


@pytest.mark.slow
def test_a_stopped_run_from_a_model_goes_on_to_the_same_model(learned: Path, pictures: Path, tmp_path: Path) -> None:
    """Stopped in its second epoch and resumed by its name, it ends with the model of a run never stopped."""
    recipe = override(recipe_from(learned), "run.epochs=3")
    options = {"models": learned.parent, "runs": tmp_path / "r", "recipe": recipe}
    with pytest.raises(small.Stopped):
        train(pictures, name="stopped", progress=small.stop_at(2), **options)  # type: ignore[arg-type]
    resumed = train(pictures, resume="stopped", progress=silent, **options)  # type: ignore[arg-type]
    whole = train(pictures, name="whole", progress=silent, **options)  # type: ignore[arg-type]
    assert resumed.model.id == whole.model.id
    with pytest.raises(RunError, match=r"there is a run 'whole' .* --resume whole"):
        train(pictures, name="whole", progress=silent, **options)  # type: ignore[arg-type]


def test_an_old_model_without_its_head_gives_its_backbone(learned: Path, pictures: Path, tmp_path: Path) -> None:
    """The run starts, its head is the objective's to set, and a warning says that the model's could not be had."""
    old = republished(learned, tmp_path, without_head=True)
    start = begin(recipe_from(old), tmp_path, CPU)
    assert not start.encoder.head_is_trained
    new = begin(recipe_from(learned), learned.parent, CPU).encoder.backbone.named_weights()
    assert all(torch.equal(value, new[name]) for name, value in start.encoder.backbone.named_weights().items())
    done = train(pictures, models=tmp_path, runs=tmp_path / "r", recipe=recipe_from(old), progress=silent)
    (warning,) = done.warnings
    assert warning.startswith(f"model {old.name} was exported without its head")


def test_a_model_that_this_code_computes_otherwise_is_told(learned: Path, pictures: Path, tmp_path: Path) -> None:
    """Where the weights don't give the probe the model's embedding, a warning has the cosine."""
    other = republished(learned, tmp_path, other_probe=True)
    _, (warning,) = embeddings_of(pictures, recipe_from(other), tmp_path)
    assert "cosine -1.0000" in warning
    resized = override(recipe_from(other), "data.size=40")
    assert begin(resized, tmp_path, CPU).warnings == ()


def test_models_that_can_not_be_started_from_are_refused(
    learned: Path, tmp_path: Path, store: Store, tiny_model: str
) -> None:
    """No weights, another backbone, another dimension, an unknown recipe, no model, a damaged head: each is told."""
    recipe, models = recipe_from(learned), learned.parent
    with pytest.raises(StartError, match=r"holds no backbone\.safetensors"):
        begin(starting_from(recipe, tiny_model), store.models, CPU)
    with pytest.raises(StartError, match=f"has the backbone {network.NAME}, and the recipe asks for resnet18"):
        begin(override(recipe, "encoder.backbone=resnet18"), models, CPU)
    with pytest.raises(StartError, match="embeddings of 16 numbers, and the recipe asks for 8"):
        begin(override(recipe, "encoder.dim=8"), models, CPU)
    with pytest.raises(StartError, match="no objective is named 'lost'"):
        recipe_from(republished(learned, tmp_path, recipe={"objective": {"name": "lost"}}))
    with pytest.raises(ManifestError, match="no readable manifest"):
        begin(starting_from(recipe, "gone"), models, CPU)
    damaged = republished(learned, tmp_path / "damaged")
    (damaged / HEAD).write_bytes((damaged / HEAD).read_bytes()[:-1])
    with pytest.raises(CorruptFile, match=HEAD):
        begin(recipe_from(damaged), tmp_path / "damaged", CPU)


@pytest.mark.slow
def test_weights_that_are_gone_cost_only_the_comparison(learned: Path, pictures: Path, tmp_path: Path) -> None:
    """A run from a model goes on where the file that the model once started from is not there any more."""
    labels = tmp_path / "labels.csv"
    rows = [f"{pictures / f'{number:02d}.png'},{number % 3}" for number in range(40)]
    labels.write_text("\n".join(["path,class_id", *rows]) + "\n")
    recipe = override(recipe_from(learned), f"encoder.weights={tmp_path / 'gone.pth'}")
    done = train(pictures, models=learned.parent, runs=tmp_path / "r", recipe=recipe, labels=labels, progress=silent)
    assert list(done.judged) == ["start", "trained"]
    assert [warning for warning in done.warnings if "frozen backbone was not judged" in warning]
    assert done.beats_frozen is None


def test_collections_are_learned_from_together(tmp_path: Path) -> None:
    """Images of all are there in order, a file that two name once, and two images of one name both."""
    first, second = draw_pictures(tmp_path / "first", 2), draw_pictures(tmp_path / "second", 3)
    table = tmp_path / "table.csv"
    table.write_text(f"path\n{second / '00.png'}\n{first / '01.png'}\nfirst/00.png\n")
    joined = open_collections([first, second, table])
    assert joined.root == first
    assert [source.path for source in joined.sources] == [
        first / "00.png",
        first / "01.png",
        second / "00.png",
        second / "01.png",
        second / "02.png",
    ]
    assert [source.item for source in joined.sources] == ["00.png", "01.png", "2:00.png", "2:01.png", "02.png"]


@pytest.mark.slow
def test_a_run_learns_from_several_collections(tmp_path: Path) -> None:
    """Every image of each is learned from."""
    first, second = draw_pictures(tmp_path / "first", 12), draw_pictures(tmp_path / "second", 11)
    options = {"models": tmp_path / "m", "runs": tmp_path / "r", "recipe": ONE_EPOCH, "progress": silent}
    done = train(first, also=[second], **options)  # type: ignore[arg-type]
    assert done.images == 23
    assert done.duplicates.copies == 11  # drawn alike


@pytest.mark.parametrize("name", ["", "../up", ".hidden", "a" * 101, "a b"])
def test_a_name_that_can_not_name_a_run_is_refused(name: str, pictures: Path, tmp_path: Path) -> None:
    """The error says what may."""
    with pytest.raises(RunError, match=r"can't name a run; 1 to 100 of"):
        train(pictures, models=tmp_path, runs=tmp_path, recipe=ONE_EPOCH, name=name, progress=silent)
