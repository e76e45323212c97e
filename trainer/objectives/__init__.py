"""The training methods by name; a new one is one file and one line of this table."""

from importlib import import_module
from typing import Any

from trainer.encoders import Encoder
from trainer.objective import Objective

OBJECTIVES = {
    "stml": "trainer.objectives.stml:STML",
}


def objective_class(name: str) -> type[Objective]:
    """The class of an objective; raises ValueError listing the names where there is none of this name."""
    if name not in OBJECTIVES:
        raise ValueError(f"no objective is named {name!r}; there are: {', '.join(sorted(OBJECTIVES))}")
    module, _, attribute = OBJECTIVES[name].partition(":")
    found: type[Objective] = getattr(import_module(module), attribute)
    return found


def make_objective(name: str, encoder: Encoder, **keywords: Any) -> Objective:
    """An objective around an encoder; `keywords` are the objective's own."""
    return objective_class(name)(encoder, **keywords)
