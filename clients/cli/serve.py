"""`kinsight serve`."""

import logging
from pathlib import Path

import click

from clients.cli.options import PATH, json_option, store_option
from clients.cli.output import print_json


@click.command()
@store_option
@click.option(
    "--listen",
    default="127.0.0.1:50051",
    show_default=True,
    metavar="HOST:PORT",
    help="Address to answer on; port 0 takes a free one.",
)
@click.option("--index", metavar="NAME", help="Serve only this index, and make it the default; otherwise all.")
@click.option(
    "--allow-read",
    type=PATH,
    multiple=True,
    metavar="DIR",
    help="Folder from which requests may import images, labels and snapshots; may be repeated.",
)
@click.option(
    "--allow-write",
    type=PATH,
    multiple=True,
    metavar="DIR",
    help="Folder into which requests may write exports and snapshots; may be repeated.",
)
@click.option(
    "--processes",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Processes that answer, each with the index in its memory; one answers some 2,000 searches a second.",
)
@json_option
def serve(
    store: Path,
    listen: str,
    index: str | None,
    allow_read: tuple[Path, ...],
    allow_write: tuple[Path, ...],
    processes: int,
    as_json: bool,
) -> None:
    """Serve the indexes of a store over gRPC.

    Ctrl-C or SIGTERM ends it, once what is in progress is finished. Newly activated versions are swapped in while
    serving. Rebuilds and other long work that requests ask for run as processes of their own, behind the searches and
    at most 8 at a time; what an earlier server could not end is gone on with. One server serves a store at a time.

    \b
    JSON keys, printed once requests are answered: listen, port
    """
    from indexer.store import Store
    from server import app, fleet
    from server.folders import Folders

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    host = listen.rpartition(":")[0]

    def ready(port: int) -> None:
        address = f"{host}:{port}"
        if as_json:
            print_json({"listen": address, "port": port})
        else:
            click.echo(f"serving on {address}; try: kinsight search IMAGE --server {address}")

    folders, place = Folders(allow_read, allow_write), Store(store)
    if index is not None:
        place.index(index)  # raises where none can have that name, which would be waited for without end
    if processes == 1:
        app.run(place, listen=listen, index=index, ready=ready, folders=folders)
    else:
        fleet.run(place, listen=listen, index=index, ready=ready, folders=folders, processes=processes)
