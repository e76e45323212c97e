"""`kinsight recipes`."""

from dataclasses import asdict

import click

from clients.cli.options import json_option
from clients.cli.output import print_facts, print_json, print_table


@click.command()
@json_option
def recipes(as_json: bool) -> None:
    """List the recipes that come along, and what they reached.

    A measured run is one of the recipe with its own values, on the hardware and by the command that --json tells;
    frozen is the backbone before training.

    \b
    JSON keys: recipes[].name, recipes[].description, and in each of recipes[].measured[]: data, seed, commit,
    hardware, command, seconds, frozen_recall_at_1, recall_at_1, frozen_map_at_r, map_at_r
    """
    from trainer.recipe_files import about, names

    found = [about(name) for name in names()]
    if as_json:
        print_json({"recipes": [asdict(recipe) for recipe in found]})
        return
    print_facts({recipe.name: recipe.description for recipe in found})
    rows = [
        (
            recipe.name,
            run.data,
            run.seed,
            f"{run.frozen_recall_at_1:.4f}",
            f"{run.recall_at_1:.4f}",
            f"{run.frozen_map_at_r:.4f}",
            f"{run.map_at_r:.4f}",
            f"{run.seconds / 60:.1f}",
        )
        for recipe in found
        for run in recipe.measured
    ]
    if rows:
        columns = ("recipe", "measured on", "seed", "frozen R@1", "R@1", "frozen MAP@R", "MAP@R", "minutes")
        print_table(columns, rows)
