"""`kinsight serve`."""

import logging
from pathlib import Path

import click

from clients.cli.options import json_option, store_option
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
@json_option
def serve(store: Path, listen: str, index: str | None, as_json: bool) -> None:
    """Serve the indexes of a store over gRPC until Ctrl-C or SIGTERM, then finish what is in progress.

    Newly activated versions are swapped in while serving.

    \b
    JSON keys, printed once requests are answered: listen, port
    """
    from indexer.store import Store
    from server.app import run

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    host = listen.rpartition(":")[0]

    def ready(port: int) -> None:
        address = f"{host}:{port}"
        if as_json:
            print_json({"listen": address, "port": port})
        else:
            click.echo(f"serving on {address}; try: kinsight search IMAGE --server {address}")

    run(Store(store), listen=listen, index=index, ready=ready)
