"""`kinsight index`: build, list, measure, activate and copy versions of an index."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import click

from clients.cli.described import print_version, summary_of
from clients.cli.options import (
    PATH,
    Device,
    device_option,
    index_labels_help,
    json_option,
    memory_budget_option,
    store_option,
    target_recall_option,
)
from clients.cli.output import cell, print_json, print_table, tell_active, tell_facts
from clients.cli.rebuild import result_of, warn_of
from clients.cli.recording import operation_option, recorded

if TYPE_CHECKING:
    from indexer.store import Store


@click.group()
def index() -> None:
    """Build, list, measure, activate and copy indexes."""


@index.command()
@click.argument("name")
@click.argument("images", type=PATH)
@click.option("--model", required=True, help="Id of the model that embeds, or how it begins.")
@store_option
@target_recall_option
@memory_budget_option
@device_option
@operation_option
@json_option
def build(
    name: str,
    images: Path,
    model: str,
    store: Path,
    target_recall: float | None,
    memory_budget: int | None,
    device: Device,
    operation: str | None,  # noqa: ARG001  `recorded` takes it from the context
    as_json: bool,
) -> None:
    """Index IMAGES with a model as the next version of NAME.

    That version is activated.

    IMAGES is a folder, searched with its subfolders; a CSV or Parquet table with a column path; tar shards; or
    Parquet tables with the images in a column. `kinsight train --help` says more of each. A table's column payload is
    not read here, but by `kinsight items import`.

    Of what an earlier build put into NAME, the version holds what is in IMAGES still; of what was upserted, all that
    MODEL embeds or has embedded; of what was deleted, nothing. `kinsight rebuild` adds images instead, and measures.
    It appears whole or not at all; until then the one before it is served. The same command again goes on where an
    interrupted one ended. Its recall is measured against exact search and kept with it.

    \b
    JSON keys: index, version, model, count, resumed, reused, decoded, deleted, upserted, skipped[].item,
    skipped[].reason, duplicates.copies, duplicates.groups[][], recall_at_10, recall{}, plan{}, comparison, refused,
    activated, seconds{}, warnings[]
    """
    from indexer.build import build as run
    from indexer.manifest import read_version
    from indexer.store import Store
    from indexer.version import version_dir

    place = Store(store)
    with recorded("build", name, store) as work:
        done = run(
            name,
            images,
            model=model,
            store=place,
            target_recall=target_recall,
            memory_budget_bytes=memory_budget,
            device=device,
            warn=work.warn,
            progress=work.report,
        )
        work.finish(result_of(done, work.told))
    warn_of(done)
    if as_json:
        print_json(result_of(done, work.told))
    else:
        print_version(read_version(version_dir(place.index(name), done.version)))


@index.command(name="list")
@store_option
@json_option
def list_(store: Path, as_json: bool) -> None:
    """List the indexes of a store, with their versions.

    One whose active version is not there is named on stderr, with what to do.

    \b
    JSON keys: indexes[].index, indexes[].versions[], indexes[].active (or null)
    """
    from indexer.store import Store
    from indexer.version import list_versions

    place = Store(store)
    found = [
        {"index": name, "versions": list_versions(place.index(name)), "active": _active(place, name)}
        for name in place.index_names()
    ]
    if as_json:
        print_json({"indexes": found})
    elif found:
        print_table(["index", "versions", "active"], [tuple(map(cell, entry.values())) for entry in found])
    else:
        click.echo(f"no index in {store}")


@index.command()
@click.argument("name")
@click.option("--version", type=int, metavar="N", help="Instead of the active version.")
@store_option
@json_option
def inspect(name: str, version: int | None, store: Path, as_json: bool) -> None:
    """Show what a version of NAME is made of, and check it.

    Shown are model, plan, recall and files. Every file is checked against its SHA-256.

    \b
    JSON keys: index, version, model, count, sequence, skipped, recall_at_10, recall{}, plan{}, build{}, candidate{},
    refused, dim, software{}, files{}.bytes, files{}.sha256, format, created
    """
    from indexer.manifest import read_version, verify
    from indexer.store import Store
    from indexer.version import version_dir

    place = Store(store)
    directory = version_dir(place.index(name), _number(place, name, version))
    manifest = read_version(directory)
    verify(directory, manifest)
    if as_json:
        print_json({**dataclasses.asdict(manifest), **summary_of(manifest)})
    else:
        print_version(manifest)


@index.command()
@click.argument("name")
@click.argument("version", type=int)
@store_option
@json_option
def activate(name: str, version: int, store: Path, as_json: bool) -> None:
    """Make VERSION the one of NAME that is searched.

    Running servers swap to it within seconds. Any version works, also one that was refused when it was built. With
    one of another model, no search finds items of which only an embedding is known: how many is told.

    \b
    JSON keys: index, version, warnings[]
    """
    from indexer.adopt import activate as run
    from indexer.store import Store

    place, told = Store(store), list[str]()
    run(place, name, _number(place, name, version), warn=told.append)
    tell_active(name, version, {"index": name, "version": version}, told, as_json)


@index.command()
@click.argument("name")
@store_option
@json_option
def rollback(name: str, store: Path, as_json: bool) -> None:
    """Go back to the version of NAME that was active before.

    The same once more undoes that. What a build has let go of since is searched again, and what it took in is not,
    nor taken in by the next build. What was upserted, imported and deleted since stays so; how many items another
    model can't find is told, as by activate.

    \b
    JSON keys: index, version, warnings[]
    """
    from indexer.adopt import rollback as run
    from indexer.store import Store

    place, told = Store(store), list[str]()
    _known(place, name)
    version = run(place, name, warn=told.append)
    tell_active(name, version, {"index": name, "version": version}, told, as_json)


@index.command(name="delete-version")
@click.argument("name")
@click.argument("version", type=int)
@store_option
@json_option
def delete_version(name: str, version: int, store: Path, as_json: bool) -> None:
    """Remove VERSION of NAME from the disk.

    The active one can't be.

    \b
    JSON keys: index, version, versions[]
    """
    from indexer.staging import sole_builder
    from indexer.store import Store
    from indexer.version import delete_version as run
    from indexer.version import list_versions

    place = Store(store)
    index_dir = place.index(name)
    number = _number(place, name, version)
    with sole_builder(index_dir):  # a build may be taking embeddings from it
        run(index_dir, number)
    if as_json:
        print_json({"index": name, "version": number, "versions": list_versions(index_dir)})
    else:
        click.echo(f"{name}: version {number} is removed")


@index.command()
@click.argument("name")
@click.option("--version", type=int, metavar="N", help="Instead of the active version.")
@click.option("--labels", type=PATH, help=index_labels_help)
@store_option
@operation_option
@json_option
def evaluate(
    name: str,
    version: int | None,
    labels: Path | None,
    store: Path,
    operation: str | None,  # noqa: ARG001  `recorded` takes it from the context
    as_json: bool,
) -> None:
    """Measure a version of NAME.

    Told are recall@10 against exact search, R@1 by labels, and how it compares with the active one. Contrast needs no
    labels: how far the ten nearest items stand out from the rest, in standard deviations.

    \b
    JSON keys: index, version, model, recall_at_10, recall{}, contrast, recall_at_1, labelled, comparison{} (or null)
    """
    from indexer.evaluation import evaluate_version
    from indexer.store import Store

    place = Store(store)
    number = _number(place, name, version)
    with recorded("evaluate", name, store, reads=True) as work:
        found = dataclasses.asdict(evaluate_version(place.index(name), number, labels, work.report))
        result = {"index": name, **found, "recall_at_10": found["recall"]["recall_at_10"]}
        work.finish(result)
    tell_facts(result, as_json)


@index.command()
@click.argument("name")
@store_option
@json_option
def stats(name: str, store: Path, as_json: bool) -> None:
    """Show what NAME is now.

    It has items, changes that a rebuild would fold in, recall, and bytes by part.

    \b
    JSON keys: index, version, model, items, delta_items, hidden_items, pending_items, sequence, recall_at_10,
    list_imbalance, serving_bytes, disk_bytes{}
    """
    from indexer.stats import read_stats
    from indexer.store import Store

    place = Store(store)
    result = dataclasses.asdict(read_stats(place.index(name), _number(place, name, None)))
    tell_facts(result, as_json)


@index.command()
@click.argument("name")
@click.argument("directory", type=PATH)
@store_option
@operation_option
@json_option
def snapshot(
    name: str,
    directory: Path,
    store: Path,
    operation: str | None,  # noqa: ARG001  `recorded` takes it from the context
    as_json: bool,
) -> None:
    """Copy NAME with its model into DIRECTORY.

    DIRECTORY is a folder that is not there yet, or an empty one. Copied are the catalogue, the active version and its
    model. Searches and upserts go on meanwhile. On the store's own disk, files that never change are linked, not
    copied.

    \b
    JSON keys: index, version, model, items, sequence, bytes, created, directory
    """
    from indexer.snapshot import snapshot as run
    from indexer.store import Store

    place = Store(store)
    _number(place, name, None)
    with recorded("snapshot", name, store, reads=True) as work:
        result = dataclasses.asdict(run(place, name, directory, work.report)) | {"directory": str(directory)}
        work.finish(result)
    tell_facts(result, as_json)


@index.command()
@click.argument("directory", type=PATH)
@click.option("--name", help="Of the restored index; else the one that it had.")
@store_option
@operation_option
@json_option
def restore(
    directory: Path,
    name: str | None,
    store: Path,
    operation: str | None,  # noqa: ARG001  `recorded` takes it from the context
    as_json: bool,
) -> None:
    """Make an index of the snapshot in DIRECTORY.

    DIRECTORY is a folder that `kinsight index snapshot` made, or a copy of one. It is verified before anything is
    written. An index of that name must not be there.

    \b
    JSON keys: index, version, model, items, sequence, bytes, created
    """
    from indexer.snapshot import restore as run
    from indexer.store import Store

    with recorded("restore", name or "", store) as work:
        result = dataclasses.asdict(run(Store(store), directory, name, work.report))
        work.finish(result)
    tell_facts(result, as_json)


def _active(place: "Store", name: str) -> int | None:
    """The version of an index that can be searched; what is wrong is said, as the other indexes are fine."""
    from indexer import rebuild, version

    try:
        return rebuild.active_number(place, name)
    except (rebuild.NoActiveVersion, version.VersionError) as error:
        click.echo(f"{name}: {error}", err=True)
        return None


def _known(place: "Store", name: str) -> list[int]:
    """The versions of an index; raises NotFound, naming the indexes that there are."""
    from indexer.store import NotFound
    from indexer.version import list_versions

    if known := list_versions(place.index(name)):
        return known
    raise NotFound(f"no index {name!r} in {place.indexes}; it has: {', '.join(place.index_names()) or 'none'}")


def _number(place: "Store", name: str, version: int | None) -> int:
    """The version that is meant, the active one where none is given.

    Raises:
        NotFound: it is not there; the message names what is.
        NoActiveVersion: none is given, and none is active.
    """
    from indexer.rebuild import active_number
    from indexer.store import NotFound

    known = _known(place, name)
    number = active_number(place, name) if version is None else version
    if number not in known:
        raise NotFound(f"index {name!r} has no version {number}; it has: {', '.join(map(str, known))}")
    return number
