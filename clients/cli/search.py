"""`kinsight search`: a thin caller of the Python client."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from clients.cli.options import PATH, PNG, json_option, server_option
from clients.cli.output import payload_text, print_json, print_table, printable

if TYPE_CHECKING:
    from kinsight_client import Client, SearchResult

    from indexer.sources import Source

ITEM = "item:"  # begins a query that is an item of the index
_SHOWN = 3  # items that a warning names

Undecodable = tuple[str, str]  # item, and what is wrong with its image


@click.command()
@click.argument("queries", nargs=-1, required=True, metavar="QUERY…")
@server_option
@click.option("--index", default="", metavar="NAME", help="Instead of the server's default index.")
@click.option(
    "--top-k", type=click.IntRange(1, 1000), default=10, show_default=True, metavar="K", help="Hits for each query."
)
@click.option("--filter", default="", metavar="CONDITION", help="Which items to search; see below.")
@click.option("--min-similarity", type=click.FloatRange(-1, 1), help="Leave out hits of less similarity.")
@click.option(
    "--min-probability",
    type=click.FloatRange(0, 1),
    help="Leave out hits that show the same thing with less probability; needs kinsight calibrate.",
)
@click.option("--probability", is_flag=True, help="Show with which probability hits show the same thing.")
@click.option(
    "--near-duplicates",
    "near_duplicate_threshold",
    type=click.FloatRange(0, 1, min_open=True),
    metavar="SIMILARITY",
    help="Leave out hits that are as similar as this to a better one: copies of one image, at 0.99 say.",
)
@click.option("--group-by", default="", metavar="FIELD", help="Keep the best hit for each value of a payload field.")
@click.option("--diversity", type=click.FloatRange(0, 1), help="How much hits should differ from each other.")
@click.option("--payload", "include_payload", is_flag=True, help="Show what is kept with each hit.")
@click.option("--target-recall", type=click.FloatRange(0, 1, min_open=True), help="The recall@10 to search for.")
@click.option("--grid", type=PNG, metavar="FILE", help="Draw queries and their neighbours (.png); needs --images.")
@click.option(
    "--images", type=PATH, help="Where the indexed images are, for --grid: the IMAGES that the index was built from."
)
@json_option
def search(
    queries: tuple[str, ...],
    server: str,
    grid: Path | None,
    images: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Find the images nearest to each QUERY.

    A QUERY is an image file, or item:ID for an item of the index.

    CONDITION is about the items' payloads, such as 'species = "wren" AND year >= 2020 AND NOT tags:blurred'. Fields
    are name or outer.inner, and item is the item's id. There are = != < <= > >=, IN (a, b), field:x for a list that
    has x, field:* for a field that is there, wr* for text that begins so, AND, OR, NOT and parentheses; OR binds
    closer than AND.

    A query that fails is named on stderr; the others are answered, and the exit code is 1. Images that --grid
    needs and --images does not have are named there too; their cells are empty, and the exit code is as without.

    \b
    JSON keys: hits[].query, hits[].rank, hits[].item, hits[].similarity, hits[].payload{} (or null, with --payload),
    hits[].probability (with --probability or --min-probability), errors[].query, errors[].error,
    missing_images[] (items; with --grid); unless all queries failed also index, version, model,
    false_accept_rate (with --min-probability)
    """
    from kinsight_client import Client

    if grid and not images:
        raise click.UsageError("--grid needs --images: a server answers with items, not with pictures")
    indexed = _by_item(images) if grid and images else {}
    with Client(server) as client:
        results, errors = _search_all(client, queries, options)
    for query, error in errors.items():
        click.echo(f"error: {printable(query)}: {error}", err=True)
    missing = [item for item in _pictured(results) if item not in indexed] if grid else []
    if as_json:
        failed = [{"query": query, "error": error} for query, error in errors.items()]
        told = {**_origin(results), "hits": _hits(results, options["include_payload"]), "errors": failed}
        print_json(told | ({"missing_images": missing} if grid else {}))
    elif results:
        _print(results, options["include_payload"], options["min_probability"])
    if results and grid and images:
        _warn_empty(missing, _draw(results, indexed, grid), images)
    if errors:
        click.get_current_context().exit(1)


def _search_all(
    client: "Client", queries: Sequence[str], options: Mapping[str, Any]
) -> tuple[dict[str, "SearchResult"], dict[str, str]]:
    """The answer to each query, and why the others have none."""
    from kinsight_client import KinsightError, Unavailable

    results, errors = {}, {}
    for query in dict.fromkeys(queries):
        try:
            if query.startswith(ITEM):
                results[query] = client.search(item=query.removeprefix(ITEM), **options)
            elif Path(query).exists() and not Path(query).is_file():  # reading a pipe may wait for ever
                errors[query] = "can't be read: it is not a file"
            else:
                results[query] = client.search(image=Path(query), **options)
        except Unavailable:
            raise  # no other query can fare better
        except KinsightError as error:
            errors[query] = str(error)
        except OSError as error:
            errors[query] = f"can't be read: {error.strerror}"
        except UnicodeEncodeError:
            errors[query] = "is not UTF-8; an item's id has such bytes percent-encoded, for example %E9"
    return results, errors


def _origin(results: Mapping[str, "SearchResult"]) -> dict[str, object]:
    """The one index, version and model of all answers."""
    origins = {(result.index, result.version, result.model) for result in results.values()}
    if len(origins) > 1:
        found = ", ".join(str(version) for _, version, _ in sorted(origins))
        raise ValueError(f"the index was swapped while searching (versions {found}); run the search again")
    origin: dict[str, object] = {}
    for result in results.values():
        origin = {"index": result.index, "version": result.version, "model": result.model}
        if result.false_accept_rate is not None:
            origin["false_accept_rate"] = result.false_accept_rate
    return origin


def _hits(results: Mapping[str, "SearchResult"], payloads: bool) -> list[dict[str, object]]:
    return [
        {"query": query, "rank": rank, "item": hit.item, "similarity": hit.similarity}
        | ({} if hit.probability is None else {"probability": hit.probability})
        | ({"payload": hit.payload} if payloads else {})
        for query, result in results.items()
        for rank, hit in enumerate(result.hits, start=1)
    ]


def _print(results: Mapping[str, "SearchResult"], payloads: bool, least: float | None) -> None:
    hits = _hits(results, payloads)
    if hits:
        print_table([*hits[0]], [[_cell(name, value) for name, value in hit.items()] for hit in hits])
    why = "no item matches" if least is None else f"no good match: no item has a probability of at least {least:g}"
    for query, result in results.items():
        if not result.hits:
            click.echo(f"{printable(query)}: {why}")
    rate = next(iter(results.values())).false_accept_rate
    if rate is not None:
        click.echo(
            f"false accepts: {rate:.2%} of pairs of images of different things reach a probability of {least:g}"
        )


def _cell(name: str, value: Any) -> object:
    if name == "payload":
        return payload_text(value)
    return f"{value:.4f}" if name in ("similarity", "probability") else value


def _by_item(images: Path) -> dict[str, "Source"]:
    from indexer.sources import open_collection

    return {source.item: source for source in open_collection(images).sources}


def _pictured(results: Mapping[str, "SearchResult"]) -> list[str]:
    """The items that a grid shows, each once."""
    queries = [query.removeprefix(ITEM) for query in results if query.startswith(ITEM)]
    return list(dict.fromkeys([*queries, *(hit.item for result in results.values() for hit in result.hits)]))


def _draw(results: Mapping[str, "SearchResult"], indexed: Mapping[str, "Source"], grid: Path) -> list[Undecodable]:
    """Write the grid; returns the images that can't be decoded."""
    from clients.cli.grid import Cell, draw_grid
    from indexer.sources import FileSource

    rows = []
    for query, result in results.items():
        item = query.removeprefix(ITEM)
        image = indexed.get(item) if query.startswith(ITEM) else FileSource(query, "", query)
        neighbours = [Cell(indexed.get(hit.item), f"{hit.similarity:.3f}") for hit in result.hits]
        rows.append((Cell(image, "query"), neighbours))
    return draw_grid(rows, grid)


def _warn_empty(missing: Sequence[str], undecodable: Sequence[Undecodable], images: Path) -> None:
    """Say on stderr which cells of a grid are empty, and why."""
    if missing:
        what = f"{printable(str(images))} lacks {len(missing):,} of the grid's images, whose cells are empty"
        remedy = "give --images the IMAGES that the index was built from"
        click.echo(f"warning: {what}: {_first(missing)}; {remedy}", err=True)
    if undecodable:
        what = f"{len(undecodable):,} of the grid's images can't be decoded, and their cells are empty"
        named = _first([f"{item} ({reason})" for item, reason in undecodable])
        click.echo(f"warning: {what}: {named}", err=True)


def _first(names: Sequence[str]) -> str:
    return ", ".join(map(printable, names[:_SHOWN])) + (", …" if len(names) > _SHOWN else "")
