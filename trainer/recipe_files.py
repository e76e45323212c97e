"""The files of recipes: how they are read, what each says of itself, and how values are checked; all without torch.

RecipeError   an unknown section or key (the nearest name is given), or a value of the wrong type or out of range
"""

import difflib
import math
import tomllib
import types
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

_FOLDER = Path(__file__).parent / "recipes"
_ABOUT = ("description", "measured")  # what a file says of its recipe beside its values


class RecipeError(ValueError):
    """A recipe can't be used; the message names the key and the remedy."""


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


def names() -> list[str]:
    """The recipes that ship with the trainer."""
    return sorted(path.stem for path in _FOLDER.glob("*.toml"))


def read(name: str | Path) -> tuple[About, dict[str, Any]]:
    """What a recipe says of itself, by name or from a TOML file, and its sections as they stand there.

    Raises:
        RecipeError: no such recipe or file, not TOML, or a description or figures that are not right.
    """
    path = _FOLDER / f"{name}.toml"
    if not path.is_file():
        path = Path(name)
    try:
        fields = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(
            f"no recipe {str(name)!r}; there are: {', '.join(names())}, or give a .toml file"
        ) from error
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"recipe {path} is not TOML: {error}") from error
    return _about(str(name), fields), {key: value for key, value in fields.items() if key not in _ABOUT}


def about(name: str) -> About:
    """What a recipe says of itself; raises RecipeError as `read` does."""
    return read(name)[0]


def values_of(section: str, values: Mapping[str, Any], kinds: Mapping[str, Any]) -> dict[str, Any]:
    """A section's values as their types; raises RecipeError where a key is unknown or a value of another type."""
    for key in values:
        check_known(key, kinds, f"key of [{section}]")
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


def check_known(name: str, names: Mapping[str, Any], what: str) -> None:
    """Raise RecipeError where a name is none of those that there are, with the nearest."""
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise RecipeError(f"no {what} is named {name!r}{hint} There are: {', '.join(names)}")


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
    return Measured(**values_of("measured", table, kinds))
