"""`kinsight remote versions|activate|rollback|delete-version`: which version a running server searches."""

from typing import TYPE_CHECKING

import click

from clients.cli.options import json_option, server_option
from clients.cli.output import tell_active, tell_facts
from clients.cli.remote import plain, tell_all

if TYPE_CHECKING:
    from kinsight_client import Client, Index

SWAP_TIMEOUT_S = 3600.0  # the server reads every byte of a version before it searches it, perhaps from a slow disk


@click.command()
@click.argument("name")
@server_option
@json_option
def versions(name: str, server: str, as_json: bool) -> None:
    """List the versions of index NAME, newest first.

    \b
    JSON keys: versions[].index, versions[].version, versions[].state, versions[].model, versions[].dimension,
    versions[].items, versions[].sequence, versions[].factory, versions[].bytes, versions[].recall_at_10,
    versions[].created, versions[].refusal
    """
    from kinsight_client import Client

    with Client(server) as client:
        found = [plain(version) for version in client.indexes.versions(name)]
    shown = ["version", "state", "model", "items", "bytes", "recall_at_10", "created", "refusal"]
    tell_all("versions", found, shown, as_json)


@click.command()
@click.argument("name")
@click.argument("version", type=int)
@server_option
@json_option
def activate(name: str, version: int, server: str, as_json: bool) -> None:
    """Make VERSION the one of index NAME that is searched.

    That may be one that was refused when it was built. The server verifies every byte of it first; it is waited for
    up to an hour. How many items no search finds then is told.

    \b
    JSON keys: index, active_version, previous_version, model, items, etag, problem, warnings[]
    """
    from kinsight_client import Client

    with Client(server, timeout_s=SWAP_TIMEOUT_S) as client:
        _tell_active(client, client.indexes.activate(version, index=name), as_json)


@click.command()
@click.argument("name")
@server_option
@json_option
def rollback(name: str, server: str, as_json: bool) -> None:
    """Go back to the version of NAME that was active before.

    The same once more undoes that. How many items no search finds then is told.

    \b
    JSON keys: index, active_version, previous_version, model, items, etag, problem, warnings[]
    """
    from kinsight_client import Client

    with Client(server, timeout_s=SWAP_TIMEOUT_S) as client:
        _tell_active(client, client.indexes.rollback(name), as_json)


@click.command(name="delete-version")
@click.argument("name")
@click.argument("version", type=int)
@server_option
@json_option
def delete_version(name: str, version: int, server: str, as_json: bool) -> None:
    """Remove VERSION of index NAME from the server's disk.

    It can't be the active one, nor the one before that.

    \b
    JSON keys: index, version
    """
    from kinsight_client import Client

    with Client(server) as client:
        client.indexes.delete_version(version, index=name)
    tell_facts({"index": name, "version": version}, as_json)


def _tell_active(client: "Client", index: "Index", as_json: bool) -> None:
    told = _warnings_of(client, index)
    tell_active(index.index, index.active_version, plain(index), told, as_json)


def _warnings_of(client: "Client", index: "Index") -> list[str]:
    """What a person should know of a version that was activated a moment ago.

    Nothing that fails here may look as if that had failed: rolled back again, it would be undone.
    """
    from kinsight_client import KinsightError

    try:
        count = client.indexes.stats(index.index).pending_items
    except KinsightError as error:
        return [f"how many items no search finds now is not known: {error}"]
    which = f"{count:,} items are found by no search now, as model {index.model} has not embedded them"
    remedy = "those whose images can be read will be; of the others upsert the images, or embeddings of that model"
    return [f"{which}: {remedy}"] if count else []
