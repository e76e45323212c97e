"""Find the images of an index that look like a photograph: `python search.py PHOTO [HOST:PORT]`."""

import sys
from pathlib import Path

from kinsight_client import Client, KinsightError


def main(photo: str, target: str = "127.0.0.1:50051") -> None:
    """Print the ten nearest items, nearest first."""
    with Client(target) as client:
        try:
            result = client.search(image=Path(photo), top_k=10)
        except KinsightError as error:
            sys.exit(f"{error.reason or error.code}: {error.message}")
    print(f"index {result.index}, version {result.version}, model {result.model}")
    for hit in result.hits:
        print(f"{hit.similarity:.4f}  {hit.item}")


if __name__ == "__main__":
    main(*sys.argv[1:])
