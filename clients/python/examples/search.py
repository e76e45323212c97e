"""Find the images of an index that look like a photograph: `python search.py PHOTO [HOST:PORT [INDEX]]`."""

import sys
from pathlib import Path

from kinsight_client import Client, KinsightError


def main(photo: str, target: str = "127.0.0.1:50051", index: str = "") -> None:
    """Print the ten nearest items, nearest first."""
    with Client(target) as client:
        try:
            result = client.search(image=Path(photo), index=index, top_k=10)
        except KinsightError as error:
            sys.exit(f"{error.reason or error.code}: {error.message}")
        except OSError as error:
            sys.exit(f"{photo} can't be read: {error.strerror}")
    print(f"index {result.index}, version {result.version}, model {result.model}")
    for hit in result.hits:
        print(f"{hit.similarity:.4f}  {hit.item}")


if __name__ == "__main__":
    if not 2 <= len(sys.argv) <= 4:
        sys.exit(__doc__)
    main(*sys.argv[1:])
