"""`kinsight search`: a thin caller of the Python client."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from clients.cli.options import PATH, json_option
from clients.cli.output import print_json, print_table, printable

if TYPE_CHECKING:
    from kinsight_client import Client, SearchResult

    from indexer.sources import Source

ITEM = "item:"  # begins a query that is an item of the index


@click.command()
@click.argument("queries", nargs=-1, required=True, metavar="QUERY…")
@click.option("--server", default="127.0.0.1:50051", show_default=True, metavar="HOST:PORT", help="A running server.")
@click.option("--index", default="", metavar="NAME", help="Instead of the server's default index.")
@click.option(
    "--top-k", type=click.IntRange(1, 1000), default=10, show_default=True, metavar="K", help="Hits for each query."
)
@click.option("--grid", type=PATH, metavar="PNG", help="Draw queries and their neighbours; needs --images.")
@click.option(
    "--images", type=PATH, help="Where the indexed images are, for --grid: the IMAGES that the index was built from."
)
@json_option
def search(
    queries: tuple[str, ...],
    server: str,
    index: str,
    top_k: int,
    grid: Path | None,
    images: Path | None,
    as_json: bool,
) -> None:
    """Find the images nearest to each QUERY: an image file, or item:ID for an item of the index.

    A query that fails is named on stderr; the others are answered, and the exit code is 1.

    \b
    JSON keys: index, version, model, hits[].query, hits[].rank, hits[].item, hits[].similarity,
    errors[].query, errors[].error
    """
    from kinsight_client import Client

    if grid and not images:
        raise click.UsageError("--grid needs --images: a server answers with items, not with pictures")
    indexed = _by_item(images) if grid and images else {}
    with Client(server) as client:
        results, errors = _search_all(client, queries, index, top_k)
    for query, error in errors.items():
        click.echo(f"error: {printable(query)}: {error}", err=True)
    if as_json:
        failed = [{"query": query, "error": error} for query, error in errors.items()]
        print_json({**_origin(results), "hits": _hits(results), "errors": failed})
    elif results:
        rows = [(hit["query"], hit["rank"], hit["item"], f"{hit['similarity']:.4f}") for hit in _hits(results)]
        print_table(["query", "rank", "item", "similarity"], rows)
    if results and grid:
        _draw(results, indexed, grid)
    if errors:
        click.get_current_context().exit(1)


def _search_all(
    client: "Client", queries: Sequence[str], index: str, top_k: int
) -> tuple[dict[str, "SearchResult"], dict[str, str]]:
    """The answer to each query, and why the others have none."""
    from kinsight_client import KinsightError, Unavailable

    results, errors = {}, {}
    for query in dict.fromkeys(queries):
        try:
            if query.startswith(ITEM):
                results[query] = client.search(item=query.removeprefix(ITEM), index=index, top_k=top_k)
            else:
                results[query] = client.search(image=Path(query), index=index, top_k=top_k)
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
    return {
        name: value for origin in origins for name, value in zip(("index", "version", "model"), origin, strict=True)
    }


def _hits(results: Mapping[str, "SearchResult"]) -> list[dict[str, object]]:
    return [
        {"query": query, "rank": rank, "item": hit.item, "similarity": hit.similarity}
        for query, result in results.items()
        for rank, hit in enumerate(result.hits, start=1)
    ]


def _by_item(images: Path) -> dict[str, "Source"]:
    from indexer.sources import open_collection

    return {source.item: source for source in open_collection(images).sources}


def _draw(results: Mapping[str, "SearchResult"], indexed: Mapping[str, "Source"], grid: Path) -> None:
    from clients.cli.grid import Cell, draw_grid
    from indexer.sources import FileSource

    rows = []
    for query, result in results.items():
        item = query.removeprefix(ITEM)
        image = indexed.get(item) if query.startswith(ITEM) else FileSource(query, "", query)
        neighbours = [Cell(indexed.get(hit.item), f"{hit.similarity:.3f}") for hit in result.hits]
        rows.append((Cell(image, "query"), neighbours))
    draw_grid(rows, grid)
