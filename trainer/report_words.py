"""What the report calls the numbers of a run, and says of them to who sees them for the first time."""

from collections.abc import Iterable

METRICS = (
    "R@k: share of the queries with an image of their class among the k nearest. MAP@R and R-precision: how many of "
    "a class's images come first, with and without regard to their order. kNN accuracy: share of the queries whose "
    "20 nearest vote for their class. NMI and AMI: how well clusters of the embeddings match the classes."
)
RISING = (
    "It rose: a method that makes its own targets moves them as it learns, so only the numbers by epoch below tell "
    "whether the embeddings became better."
)
_TITLES = {
    "map_at_r": "MAP@R",
    "r_precision": "R-precision",
    "knn_accuracy": "kNN accuracy",
    "nmi": "NMI",
    "ami": "AMI",
    "contrast": "neighbour contrast, in SD",
    "neighbour_precision": "neighbour precision",
    "pseudo_label_precision": "pseudo-label precision",
    "lr": "learning rate",
    "images_per_s": "images/s, steps alone",
    "loader_wait_s": "waited for images, s",
}
_OF_EPOCHS = {
    "contrast": "Neighbour contrast: how far, in standard deviations (SD), the 10 nearest of at most 500 training "
    "images stand out from the rest; it needs no labels.",
    "neighbour_precision": "Neighbour precision: share of a training image's 5 nearest that are of its class.",
    "pseudo_label_precision": "Pseudo-label precision: the same of the 5 that the method's own labels hold most "
    "alike, by which it pulls images together.",
}


def called(name: str) -> str:
    """What a number of the log is called."""
    if name.startswith("recall_at_"):
        return f"R@{name.removeprefix('recall_at_')}"
    return _TITLES.get(name) or name.replace("_", " ")


def explained(names: Iterable[str]) -> str:
    """A sentence for each of the numbers by epoch that needs one."""
    return " ".join(_OF_EPOCHS[name] for name in names if name in _OF_EPOCHS)
