"""The training methods by name; a new one is one file and one line of this table."""

import inspect
from importlib import import_module
from typing import Any, get_type_hints

from trainer.encoders import Encoder
from trainer.objective import Objective

OBJECTIVES = {
    "cmsf_semi": "trainer.objectives.cmsf_semi:CMSFSemi",
    "stml": "trainer.objectives.stml:STML",
    "stml_semi": "trainer.objectives.stml_semi:STMLSemi",
    "supervised": "trainer.objectives.supervised:Supervised",
}


def objective_class(name: str) -> type[Objective]:
    """The class of an objective; raises ValueError listing the names where there is none of this name."""
    if name not in OBJECTIVES:
        raise ValueError(f"no objective is named {name!r}; there are: {', '.join(sorted(OBJECTIVES))}")
    module, _, attribute = OBJECTIVES[name].partition(":")
    found: type[Objective] = getattr(import_module(module), attribute)
    return found


def objective_keywords(name: str) -> dict[str, Any]:
    """The keywords that an objective takes and their types; of one that passes keywords on, those of its base too.

    Raises:
        ValueError: no objective has this name.
    """
    found: dict[str, Any] = {}
    for kind in objective_class(name).__mro__:
        parameters, hints = inspect.signature(kind).parameters.values(), get_type_hints(vars(kind)["__init__"])
        found |= {p.name: hints[p.name] for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in found}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return found


def make_objective(name: str, encoder: Encoder, **keywords: Any) -> Objective:
    """An objective around an encoder; `keywords` are the objective's own."""
    return objective_class(name)(encoder, **keywords)
