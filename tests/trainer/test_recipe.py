"""Recipes: what ships loads, what is misspelt is named, and every value keeps its type."""

from pathlib import Path

import pytest

from trainer.objectives import objective_class
from trainer.recipe import from_dict, load, override, resized, taught, to_dict, to_toml
from trainer.recipe_files import RecipeError, about, names


@pytest.mark.parametrize("name", names())
def test_shipped_recipes_load_and_survive_a_round_trip(name: str, tmp_path: Path) -> None:
    """to_dict and from_dict are inverse, through JSON's types; to_toml and load are, through a file."""
    recipe = load(name)
    assert recipe == from_dict(to_dict(recipe))
    file = tmp_path / "recipe.toml"
    file.write_text(to_toml(recipe))
    assert recipe == load(file)


@pytest.mark.parametrize(
    "assignment",
    [
        "encoder.weights='a \"quoted\" \\ path\u2028 with ünïcode'",
        "optimizer.head_lr=1e-05",
        "optimizer.lr=1e-7",
        "objective.sigma=1e300",
        "view.scale=[0.5, 1.0]",
        "run.seed=9223372036854775807",
    ],
)
def test_any_value_survives_the_resolved_recipe(assignment: str, tmp_path: Path) -> None:
    """What a run writes down is what it reads again when it is resumed."""
    recipe = override(load("stml"), assignment)
    file = tmp_path / "recipe.toml"
    file.write_text(to_toml(recipe), encoding="utf-8")
    assert recipe == load(file)


def test_the_papers_recipe_has_the_papers_numbers() -> None:
    """`stml-paper` is the authors' command for CUB and Cars."""
    recipe = load("stml-paper")
    optimizer, run = recipe.optimizer, recipe.run
    assert (optimizer.name, optimizer.lr, optimizer.weight_decay) == ("adamp", 1e-4, 1e-2)
    assert (run.epochs, run.batch_size, run.schedule) == (90, 120, "cosine")
    assert {key: recipe.objective.keywords[key] for key in ("neighbours", "context", "sigma")} == {
        "neighbours": 5,
        "context": 10,
        "sigma": 3.0,
    }


def test_the_papers_recipe_for_products_differs_where_their_command_does() -> None:
    """`stml-paper-sop` has shorter lists, a smaller margin, a faster teacher and faster heads."""
    birds, products = to_dict(load("stml-paper")), to_dict(load("stml-paper-sop"))
    birds["objective"] |= {"neighbours": 2, "context": 4, "delta": 0.9, "momentum": 0.9}
    birds["optimizer"]["head_lr"] = 1e-2
    assert birds == products


@pytest.mark.parametrize(("tuned", "paper"), [("stml-cub-cars", "stml-paper"), ("stml-sop", "stml-paper-sop")])
def test_a_tuned_recipe_is_the_papers_with_what_the_default_was_measured_with(tuned: str, paper: str) -> None:
    """Nothing else is changed: it is as grounded as its two parents; its figures name what it was shortened to."""
    expected, measured = to_dict(load(paper)), to_dict(load("stml"))
    for section, keys in {
        "encoder": ["unit_length"],
        "objective": ["head_init", "sigma"],
        "optimizer": ["head_lr", "warmup_steps"],
        "run": ["averaging", "choose", "precision"],
    }.items():
        expected[section] |= {key: measured[section][key] for key in keys}
    expected["objective"]["whitening"] = 0.25  # the default's before it distilled, which nothing does at 224 pixels
    assert expected == to_dict(load(tuned))
    (figures,) = about(tuned).measured
    assert f"--recipe {tuned} --backbone tf_efficientnet_lite0 --epochs 3" in figures.command
    assert "a small backbone, 3 epochs" in figures.data


@pytest.mark.parametrize(
    ("assignment", "section", "key", "expected"),
    [
        ("run.epochs=3", "run", "epochs", 3),
        ("optimizer.lr=1e-3", "optimizer", "lr", 0.001),
        ("optimizer.lr=1", "optimizer", "lr", 1.0),
        ("optimizer.head_lr=none", "optimizer", "head_lr", None),
        ("encoder.freeze_bn=false", "encoder", "freeze_bn", False),
        ("encoder.backbone=resnet18", "encoder", "backbone", "resnet18"),
        ("objective.sigma=2", "objective", "sigma", 2.0),
        ("view.scale=[0.5, 1.0]", "view", "scale", [0.5, 1.0]),
        ("view.hue=0.1", "view", "hue", 0.1),
    ],
)
def test_override_sets_one_value(assignment: str, section: str, key: str, expected: object) -> None:
    """A value of the command line arrives with its type, and nothing else changes."""
    before, after = to_dict(load("stml")), to_dict(override(load("stml"), assignment))
    assert expected == after[section][key]
    before[section][key] = after[section][key]
    assert before == after


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("run.epoch=3", "did you mean 'epochs'"),
        ("optimiser.lr=1", "did you mean 'optimizer'"),
        ("objective.sigm=1", "did you mean 'sigma'"),
        ("objective.name=stlm", "there are: cmsf_semi, stml"),
        ("view.scales=1", "did you mean 'scale'"),
        ("run.epochs=three", "run.epochs is 'three'; it must be of type int"),
        ("run.epochs=0", "run.epochs is 0; it must be 1 to"),
        ("run.epochs=true", "of type int"),
        ("run.precision=half", "one of: auto, float32, bfloat16, float16"),
        ("optimizer.lr=nan", "optimizer.lr is nan"),
        ("objective.sigma=nan", "objective.sigma is nan; it must be a finite number"),
        ("objective.delta=inf", "objective.delta is inf; it must be a finite number"),
        ("view.ratio=[0.5, inf]", "view.ratio is inf; it must be a finite number"),
        ("view.scale=[0.5]", "a list of 2 numbers"),
        ("view.flip=2.0", "view.flip is 2.0; it must be 0 to 1"),
        ("data.cache_size=64", "data.cache_size is 64; it must be 160 to"),
        ("data.view_size=8", "data.view_size is 8; it must be 16 to"),
        ("data.view_size=0", "data.view_size is 0; it must be 16 to"),
        ("epochs=3", "not of the form section.key=value"),
        ("run.epochs", "not of the form section.key=value"),
    ],
)
def test_wrong_overrides_name_value_and_remedy(assignment: str, message: str) -> None:
    """Each mistake has its own message."""
    with pytest.raises(RecipeError, match=message.replace("[", r"\[")):
        override(load("stml"), assignment)


def test_views_and_decoded_images_grow_with_the_size_and_never_shrink() -> None:
    """In proportion from a recipe's own size to the limit; below it they stay; without smaller views it gets none."""
    own = override(load("stml"), "data.size=100", "data.view_size=70", "data.cache_size=150")
    for size, view, cache in ((200, 140, 300), (100, 70, 150), (64, 70, 150), (800, 560, 1024), (1024, 717, 1024)):
        data = resized(own, size).data
        assert (data.size, data.view_size, data.cache_size) == (size, view, cache)
    assert resized(override(own, "data.view_size=none"), 200).data.view_size is None
    with pytest.raises(RecipeError, match=r"data\.size is 8; it must be 16 to"):
        resized(own, 8)


def test_recipe_files_are_read_and_their_mistakes_named(tmp_path: Path) -> None:
    """A file of one's own, one that is not TOML, and one that is not there."""
    file = tmp_path / "mine.toml"
    file.write_text("[run]\nepochs = 7\n")
    assert load(file).run.epochs == 7
    file.write_text("[run\n")
    with pytest.raises(RecipeError, match="is not TOML"):
        load(file)
    with pytest.raises(
        RecipeError, match=r"no recipe 'stlm'; there are: digits, stml, .*stml-paper-sop, stml-sop, or give"
    ):
        load("stlm")
    file.write_text("run = 3\n")
    with pytest.raises(RecipeError, match=r"must be a section, \[run\]"):
        load(file)


def test_unknown_objective_lists_the_names() -> None:
    """The table's error says what there is."""
    with pytest.raises(ValueError, match="no objective is named 'byol'; there are: cmsf_semi, stml"):
        objective_class("byol")


def test_what_is_taught_by_labels_keeps_what_its_model_was_learned_with_and_ends_with_the_last_epoch() -> None:
    """Keywords that both objectives have are kept; the epoch is not chosen by a measure that labels lower."""
    recipe = override(load("stml"), "objective.sigma=2", "run.seed=7")
    found = taught(recipe, "stml_semi")
    assert (recipe.run.choose, found.run.choose, found.run.seed) == ("contrast", "last", 7)
    assert (found.objective.name, found.objective.keywords["sigma"]) == ("stml_semi", 2)


@pytest.mark.parametrize(("own", "taught_with"), [(0.99, 0.98), (0.9, 0.9), (0.0, 0.0)])
def test_few_labels_are_averaged_over_few_steps(own: float, taught_with: float) -> None:
    """What seventy steps have taught is hardly seen behind the average of a hundred; labels alone are left so."""
    recipe = override(load("stml"), f"run.averaging={own}")
    assert taught(recipe, "stml_semi").run.averaging == taught_with
    assert taught(recipe, "supervised").run.averaging == own
