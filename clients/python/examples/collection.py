"""Keep an index up to date with photographs as they come: `python collection.py FOLDER [HOST:PORT [INDEX]]`.

Upserts the folder's photographs with a payload, searches among some of them, deletes one, builds the index's next
version, and rolls back.
"""

import sys
from pathlib import Path

from kinsight_client import Client, KinsightError, Upsert


def main(folder: str, target: str = "127.0.0.1:50051", index: str = "") -> None:
    """Print what each step did."""
    try:
        photos = sorted(path for path in Path(folder).iterdir() if path.is_file())
    except OSError as error:
        sys.exit(f"{folder} can't be read: {error.strerror}")
    with Client(target) as client:
        try:
            keep(client, photos, index)
            build(client, index)
        except KinsightError as error:
            sys.exit(f"{error.reason or error.code}: {error.message}")


def keep(client: Client, photos: list[Path], index: str) -> None:
    """Upsert all, search among those that are at least half as large as the largest one, and delete the hit."""
    upserts = [Upsert(path.name, image=path, payload={"bytes": path.stat().st_size}) for path in photos]
    results = client.items.upsert_many(upserts, index=index)
    for result in results:
        if result.error:
            print(f"left out {result.item}: {result.error.message}")
    taken = [photo for photo, result in zip(photos, results, strict=True) if not result.error]
    print(f"upserted {len(taken)} of {len(photos)}")
    if not taken:
        sys.exit("nothing to search for; name a folder with photographs in it")

    half = max(photo.stat().st_size for photo in taken) // 2
    found = client.search(item=taken[0].name, index=index, filter=f"bytes >= {half}", include_payload=True, top_k=3)
    for hit in found.hits:
        print(f"{hit.similarity:.4f}  {hit.item}  {hit.payload}")

    client.items.delete(found.hits[0].item, index=index)
    print(f"deleted {found.hits[0].item}")


def build(client: Client, index: str) -> None:
    """Build the version that holds what changed, see whether it is searched, and go back to the one before."""
    operation = client.indexes.build(index)
    built = client.operations.wait(operation, progress=lambda stage, done, total: print(stage, done, "of", total))
    print(f"version {built.version.version}: {built.version.items} items, {built.version.state}")
    if built.version.refusal:
        sys.exit(f"not activated: {built.version.refusal}")

    now = client.indexes.get(index)
    before = client.indexes.rollback(index, etag=now.etag)
    print(f"rolled back from version {now.active_version} to {before.active_version}; {before.items} items as before")


if __name__ == "__main__":
    if not 2 <= len(sys.argv) <= 4:
        sys.exit(__doc__)
    main(*sys.argv[1:])
