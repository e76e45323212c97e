"""Index versions as `kinsight index` shows them."""

from typing import TYPE_CHECKING

from clients.cli.output import cell, print_facts

if TYPE_CHECKING:
    from indexer.manifest import VersionManifest


def summary_of(manifest: "VersionManifest") -> dict[str, object]:
    """What a version is, for programs."""
    return {
        "index": manifest.index,
        "version": manifest.version,
        "model": manifest.model,
        "count": manifest.count,
        "recall_at_10": manifest.recall.get("recall_at_10"),
        "recall": dict(manifest.recall),
        "plan": dict(manifest.plan),
    }


def print_version(manifest: "VersionManifest") -> None:
    """What a version is, for people."""
    facts: dict[str, object] = {
        "index": manifest.index,
        "version": manifest.version,
        "model": manifest.model,
        "count": f"{manifest.count:,}",
        "skipped": f"{manifest.skipped:,}",
        "created": manifest.created,
    }
    parts = {"plan": manifest.plan, "recall": manifest.recall, "build": manifest.build}
    nested = {f"{part}.{name}": cell(value) for part, values in parts.items() for name, value in values.items()}
    print_facts(facts | nested)
