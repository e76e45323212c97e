"""What became of an import."""

from dataclasses import dataclass, field

MAX_FAILURES = 1_000  # that a report lists
CHANGED = "it was changed or deleted since the import began, and stays so; import it again to have it as it is here"


@dataclass
class ImportReport:
    """What became of the images of a collection, or of the rows of a table of embeddings.

    Attributes:
        imported: items that are new or changed.
        unchanged: that were there already, with the same bytes or embedding, and payload.
        failed: that could not be used.
        failures: (item, reason) of the first 1,000 of them.
        warnings: what could not be used as a whole, each a sentence.
    """

    imported: int = 0
    unchanged: int = 0
    failed: int = 0
    failures: list[tuple[str, str]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def fail(self, item: str, reason: str) -> None:
        """Count what could not be used."""
        self.failed += 1
        if len(self.failures) < MAX_FAILURES:
            self.failures.append((item, reason))
