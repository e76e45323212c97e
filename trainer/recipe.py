"""Recipes: everything a training run is made of, as a TOML file or the name of one that ships with the trainer.

RecipeError   an unknown section or key (the nearest name is given), or a value of the wrong type or out of range
"""

import dataclasses
import difflib
import json
import math
import tomllib
import types
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import tomli_w

from trainer.objective import View
from trainer.objectives import objective_keywords

_FOLDER = Path(__file__).parent / "recipes"
_ABOUT = ("description", "measured")  # what a file says of its recipe beside its values
_LARGEST = 1024  # side of an image, pixels


class RecipeError(ValueError):
    """A recipe can't be used; the message names the key and the remedy."""


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
    """

    name: Literal["adamp", "adamw"] = "adamw"
    lr: float = 3e-4
    head_lr: float | None = None
    weight_decay: float = 0.01
    warmup_steps: int = 0

    def __post_init__(self) -> None:
        _in_range("optimizer.lr", self.lr, 0, 10)
        _in_range("optimizer.head_lr", self.head_lr or 0, 0, 10)
        _in_range("optimizer.weight_decay", self.weight_decay, 0, 1)
        _in_range("optimizer.warmup_steps", self.warmup_steps, 0, 1_000_000)


@dataclass(frozen=True, kw_only=True)
class Run:
    """How long, how many at a time, how exactly.

    Attributes:
        epochs: passes over the training set; each has as many steps as fill it once.
        least_steps: of an epoch: a smaller set is gone through more than once in each.
        batch_size: images of a step; each is seen in as many views as the objective has.
        seed: of everything random.
        precision: of the backbone's passes; `auto` is bfloat16 or float16 on a GPU and float32 on a CPU.
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


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a recipe reached once: figures of a run that anyone can repeat.

    Attributes:
        data: the images that it was judged on.
        seed: of the run.
        commit: of the code.
        hardware: that it ran on.
        command: that gives these figures.
        seconds: wall clock of the training.
        frozen_recall_at_1, recall_at_1: R@1 of the backbone before training, and of the model.
        frozen_map_at_r, map_at_r: MAP@R of the same two.
    """

    data: str
    seed: int
    commit: str
    hardware: str
    command: str
    seconds: float
    frozen_recall_at_1: float
    recall_at_1: float
    frozen_map_at_r: float
    map_at_r: float


@dataclass(frozen=True, kw_only=True)
class About:
    """What a recipe's file says of it.

    Attributes:
        name: of the recipe.
        description: one sentence: what it is for.
        measured: what it reached; empty where nobody has measured it.
    """

    name: str
    description: str
    measured: tuple[Measured, ...]


def load(name: str | Path) -> Recipe:
    """A recipe by name, such as `stml`, or from a TOML file.

    Raises:
        RecipeError: no such recipe or file, not TOML, or a key or value that is not right.
    """
    fields = _read(name)
    _about(str(name), fields)  # a mistake there is told too
    return from_dict({section: values for section, values in fields.items() if section not in _ABOUT})


def about(name: str) -> About:
    """What a recipe says of itself; raises RecipeError as `load` does."""
    return _about(name, _read(name))


def names() -> list[str]:
    """The recipes that ship with the trainer."""
    return sorted(path.stem for path in _FOLDER.glob("*.toml"))


def _read(name: str | Path) -> dict[str, Any]:
    path = _FOLDER / f"{name}.toml"
    if not path.is_file():
        path = Path(name)
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(
            f"no recipe {str(name)!r}; there are: {', '.join(names())}, or give a .toml file"
        ) from error
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"recipe {path} is not TOML: {error}") from error


def _about(name: str, fields: Mapping[str, Any]) -> About:
    description, tables = fields.get("description", ""), fields.get("measured", [])
    if not isinstance(description, str):
        raise RecipeError(f"description is {description!r}; it must be of type str")
    if not isinstance(tables, list) or not all(isinstance(table, Mapping) for table in tables):
        raise RecipeError("measured must be one table for each run, [[measured]]")
    return About(name=name, description=description, measured=tuple(map(_measured, tables)))


def _measured(table: Mapping[str, Any]) -> Measured:
    kinds = get_type_hints(Measured)
    missing = [key for key in kinds if key not in table]
    if missing:
        raise RecipeError(f"[[measured]] lacks {', '.join(missing)}; a figure that can't be repeated is not one")
    return Measured(**_values("measured", table, kinds))


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
        _known(section, fields, "section")
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
    return override(with_objective(recipe, name), "run.choose=last")


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
        _known(section, kinds, "section")
        if not isinstance(values, Mapping):
            raise RecipeError(f"{section} is {values!r}; it must be a section, [{section}]")
        if section == "objective":
            sections[section] = _objective(values)
        elif section == "view":
            sections[section] = _values(section, values, get_type_hints(View))
            _construct(View, sections[section])
        else:
            sections[section] = _construct(kinds[section], _values(section, values, get_type_hints(kinds[section])))
    return Recipe(**sections)


def _objective(values: Mapping[str, Any]) -> ObjectivePart:
    name = values.get("name", ObjectivePart.name)
    try:
        kinds = objective_keywords(name)
    except (ValueError, TypeError) as error:
        raise RecipeError(f"objective.name: {error}") from error
    keywords = {key: value for key, value in values.items() if key != "name"}
    return ObjectivePart(name=name, keywords=_values("objective", keywords, kinds))


def _values(section: str, values: Mapping[str, Any], kinds: Mapping[str, Any]) -> dict[str, Any]:
    for key in values:
        _known(key, kinds, f"key of [{section}]")
    return {key: _checked(f"{section}.{key}", value, kinds[key]) for key, value in values.items()}


def _checked(key: str, value: Any, kind: Any) -> Any:
    """The value as its type; RecipeError where it is none of that type."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return None if value is None or value == "none" else _checked(key, value, parts[0])
    if origin is Literal:
        if value in parts:
            return value
        raise RecipeError(f"{key} is {value!r}; it must be one of: {', '.join(parts)}")
    if origin is tuple:
        if isinstance(value, (list, tuple)) and len(value) == len(parts):
            return tuple(_checked(key, item, part) for item, part in zip(value, parts, strict=True))
        raise RecipeError(f"{key} is {value!r}; it must be a list of {len(parts)} numbers")
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not kind:
        raise RecipeError(f"{key} is {value!r}; it must be of type {kind.__name__}")
    if kind is float and not math.isfinite(value):  # no range that is checked later holds nan for out of it
        raise RecipeError(f"{key} is {value}; it must be a finite number")
    return value


def _construct(kind: type, values: dict[str, Any]) -> Any:
    try:
        return kind(**values)
    except RecipeError:
        raise
    except ValueError as error:
        raise RecipeError(str(error)) from error


def _known(name: str, names: Mapping[str, Any], what: str) -> None:
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise RecipeError(f"no {what} is named {name!r}{hint} There are: {', '.join(names)}")


def _parsed(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text  # a bare word is a string: nobody quotes twice on a command line


def _in_range(key: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise RecipeError(f"{key} is {value}; it must be {low} to {high}")
