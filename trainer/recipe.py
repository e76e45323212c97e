"""Recipes: everything a training run is made of, as a TOML file or the name of one that ships with the trainer."""

import dataclasses
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_type_hints

import tomli_w

from trainer.objective import View
from trainer.objectives import objective_class, objective_keywords
from trainer.recipe_files import RecipeError, check_known, read, values_of

_LARGEST = 1024  # side of an image, pixels


@dataclass(frozen=True, kw_only=True)
class Data:
    """Which pixels are learned from.

    Attributes:
        size: side of the images that the encoder embeds, pixels.
        view_size: side of the views that it learns from, pixels; never more than `size`, which it is where this is
            absent. Smaller ones cost less, and the encoder still gains from larger images when it embeds (Touvron et
            al., NeurIPS 2019, arXiv 1906.06423). A network whose position embeddings fix its size ignores it.
        cache_size: side of the decoded images that views are cropped from, pixels; at least `size`.
        fit: how an image becomes a square when it is embedded: `squash` or `crop`.
        crop_fraction: share of its width and height that is kept then, about the centre, (0, 1]: things look larger
            in the crops that are learned from than in whole images.
    """

    size: int = 128
    view_size: int | None = None
    cache_size: int = 160
    fit: Literal["squash", "crop"] = "squash"
    crop_fraction: float = 1.0

    def __post_init__(self) -> None:
        _in_range("data.size", self.size, 16, _LARGEST)
        _in_range("data.view_size", self.size if self.view_size is None else self.view_size, 16, _LARGEST)
        _in_range("data.cache_size", self.cache_size, self.size, _LARGEST)
        _in_range("data.crop_fraction", self.crop_fraction, 0.1, 1)


@dataclass(frozen=True, kw_only=True)
class EncoderPart:
    """What embeds.

    Attributes:
        backbone: name of a timm or torchvision network.
        weights: `imagenet`, `none` or a file.
        dim: D of the embeddings.
        freeze_bn: keep BatchNorm at its pretrained statistics.
        unit_length: scale the backbone's features to unit length before the heads see them.
        from_model: id of the model of the store whose backbone and head the run starts from; `weights` are then what
            that model once started from.
    """

    backbone: str = "tf_efficientnet_lite0"
    weights: str = "imagenet"
    dim: int = 128
    freeze_bn: bool = True
    unit_length: bool = False
    from_model: str | None = None

    def __post_init__(self) -> None:
        _in_range("encoder.dim", self.dim, 2, 4096)


@dataclass(frozen=True, kw_only=True)
class ObjectivePart:
    """The method and its own keywords, where they differ from its defaults."""

    name: str = "stml"
    keywords: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """How weights move.

    Attributes:
        name: `adamp` (the paper's; many small kernels) or `adamw` (fused).
        lr: learning rate of the backbone.
        head_lr: of the heads; `lr` where it is not given.
        weight_decay: decoupled, on all trained parameters.
        warmup_steps: over these first steps the learning rates rise to their values. Adam's first steps are as long
            as any whatever the gradient, which unsettles what a pretrained backbone knows.
        learning_on_share: of both learning rates, in a run without labels that starts from a model: the less, the
            more it keeps of what that model knows.
    """

    name: Literal["adamp", "adamw"] = "adamw"
    lr: float = 3e-4
    head_lr: float | None = None
    weight_decay: float = 0.01
    warmup_steps: int = 0
    learning_on_share: float = 1.0

    def __post_init__(self) -> None:
        _in_range("optimizer.lr", self.lr, 0, 10)
        _in_range("optimizer.head_lr", self.head_lr or 0, 0, 10)
        _in_range("optimizer.weight_decay", self.weight_decay, 0, 1)
        _in_range("optimizer.warmup_steps", self.warmup_steps, 0, 1_000_000)
        _in_range("optimizer.learning_on_share", self.learning_on_share, 0, 1)


@dataclass(frozen=True, kw_only=True)
class Run:
    """How long, how many at a time, how exactly.

    Attributes:
        epochs: passes over the training set; each has as many steps as fill it once.
        least_steps: of an epoch: a smaller set is gone through more than once in each.
        batch_size: images of a step; each is seen in as many views as the objective has.
        seed: of everything random.
        precision: of the backbone's passes; `auto` is bfloat16 or float16 on a GPU and float32 on a CPU. `float32` is
            so on a GPU too, without TF32, and slower there.
        schedule: of the learning rates, by epoch: `cosine` to 0, or `constant`.
        averaging: what is judged and exported is the moving average of the encoder's weights, each step moving it by
            1 minus this toward the current ones (0.98: about the last 50 steps); 0 takes the current ones.
        choose: which epoch's encoder is exported: the one of the highest neighbour `contrast`, which needs no
            labels, or the `last`.
        deterministic: give the same bits at each run on the same machine. A CPU does so anyway, and at the same
            speed; a GPU is slower, as it must do without its fastest algorithms.
    """

    epochs: int = 10
    least_steps: int = 1
    batch_size: int = 120
    seed: int = 0
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    schedule: Literal["cosine", "constant"] = "cosine"
    averaging: float = 0.0
    choose: Literal["contrast", "last"] = "last"
    deterministic: bool = False

    def __post_init__(self) -> None:
        _in_range("run.epochs", self.epochs, 1, 100_000)
        _in_range("run.least_steps", self.least_steps, 1, 1_000_000)
        _in_range("run.batch_size", self.batch_size, 2, 65_536)
        _in_range("run.seed", self.seed, 0, 2**63 - 1)
        _in_range("run.averaging", self.averaging, 0, 0.99999)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything a training run is made of; `view` overrides fields of each of the objective's views."""

    data: Data = field(default_factory=Data)
    encoder: EncoderPart = field(default_factory=EncoderPart)
    objective: ObjectivePart = field(default_factory=ObjectivePart)
    view: Mapping[str, Any] = field(default_factory=dict)
    optimizer: Optimizer = field(default_factory=Optimizer)
    run: Run = field(default_factory=Run)


def load(name: str | Path) -> Recipe:
    """A recipe by name, such as `stml`, or from a TOML file.

    Raises:
        RecipeError: no such recipe or file, not TOML, or a key or value that is not right.
    """
    _, fields = read(name)
    return from_dict(fields)


def override(recipe: Recipe, *assignments: str) -> Recipe:
    """A recipe with values changed together: `run.epochs=20`; `none` empties a value that may be absent.

    Only the outcome must be valid, so that values which limit each other can be given in any order.

    Raises:
        RecipeError: not of this form, or a key or value that is not right.
    """
    fields = to_dict(recipe)
    for assignment in assignments:
        target, equals, text = assignment.partition("=")
        section, dot, key = target.strip().partition(".")
        if not (equals and dot):
            raise RecipeError(f"{assignment!r} is not of the form section.key=value, for example run.epochs=20")
        check_known(section, fields, "section")
        fields[section][key] = _parsed(text.strip())
    return from_dict(fields)


def resized(recipe: Recipe, size: int) -> Recipe:
    """A recipe for images of another side, pixels; raises RecipeError.

    The sides of views and of the decoded images that they are cropped from grow in proportion, as far as they may,
    and never shrink: small views cost little anyway, and what teaches by distillation is as large as it was.
    """
    data = recipe.data
    larger = max(1.0, size / data.size)
    view = "none" if data.view_size is None else min(_LARGEST, round(data.view_size * larger))
    cache = min(_LARGEST, round(data.cache_size * larger))
    return override(recipe, f"data.size={size}", f"data.view_size={view}", f"data.cache_size={cache}")


def with_objective(recipe: Recipe, name: str) -> Recipe:
    """A recipe with another objective, which keeps the keywords that it knows too; raises RecipeError."""
    known = to_dict(recipe)["objective"]
    try:
        shared = {key: known[key] for key in objective_keywords(name) if key in known}
    except ValueError as error:
        raise RecipeError(f"objective.name: {error}") from error
    return from_dict({**to_dict(recipe), "objective": {"name": name, **shared}})


def taught(recipe: Recipe, name: str) -> Recipe:
    """The recipe for learning on with a few labels, by the objective of this name; raises RecipeError.

    The last epoch's encoder is exported: the contrast, which needs no labels, falls while labels still teach.
    """
    chosen = with_objective(recipe, name)
    averaging = min(recipe.run.averaging, objective_class(name).most_averaging)
    return override(chosen, "run.choose=last", f"run.averaging={averaging}")


def to_dict(recipe: Recipe) -> dict[str, dict[str, Any]]:
    """All sections and values, as `from_dict` and JSON take them."""
    fields = dataclasses.asdict(recipe)
    objective = fields["objective"]
    fields["objective"] = {"name": objective["name"], **objective["keywords"]}
    plain: dict[str, dict[str, Any]] = json.loads(json.dumps(fields))
    return plain


def to_toml(recipe: Recipe) -> str:
    """A TOML file that `load` reads as this very recipe, every value written out."""
    fields = to_dict(recipe)
    written = {
        section: {key: "none" if value is None else value for key, value in values.items()}
        for section, values in fields.items()
    }
    return tomli_w.dumps(written)


def from_dict(fields: Mapping[str, Mapping[str, Any]]) -> Recipe:
    """The recipe of the sections and values that `fields` has, and the defaults of the rest; raises RecipeError."""
    kinds = get_type_hints(Recipe)
    sections: dict[str, Any] = {}
    for section, values in fields.items():
        check_known(section, kinds, "section")
        if not isinstance(values, Mapping):
            raise RecipeError(f"{section} is {values!r}; it must be a section, [{section}]")
        if section == "objective":
            sections[section] = _objective(values)
        elif section == "view":
            sections[section] = values_of(section, values, get_type_hints(View))
            _construct(View, sections[section])
        else:
            sections[section] = _construct(kinds[section], values_of(section, values, get_type_hints(kinds[section])))
    return Recipe(**sections)


def _objective(values: Mapping[str, Any]) -> ObjectivePart:
    name = values.get("name", ObjectivePart.name)
    try:
        kinds = objective_keywords(name)
    except (ValueError, TypeError) as error:
        raise RecipeError(f"objective.name: {error}") from error
    keywords = {key: value for key, value in values.items() if key != "name"}
    return ObjectivePart(name=name, keywords=values_of("objective", keywords, kinds))


def _construct(kind: type, values: dict[str, Any]) -> Any:
    try:
        return kind(**values)
    except RecipeError:
        raise
    except ValueError as error:
        raise RecipeError(str(error)) from error


def _parsed(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text  # a bare word is a string: nobody quotes twice on a command line


def _in_range(key: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise RecipeError(f"{key} is {value}; it must be {low} to {high}")
