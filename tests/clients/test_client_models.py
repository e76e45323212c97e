"""The calls of both clients for models, over a real server."""

from pathlib import Path
from typing import Any

import pytest
from kinsight_client import InvalidArgument, NotFound
from kinsight_client.learning import labels_message

from tests.clients.both import KINDS
from tests.serving import Served


@KINDS
def test_models_are_listed_and_read(kind: Any, served: Served) -> None:
    """By id, or how it begins; one that is not there is NotFound."""
    with kind(served.target) as client:
        (model,) = client.models.list()
        assert (model.backbone, model.objective, model.dimension, model.labelled) == ("tiny", "none", 32, 0)
        assert client.models.get(model.model[:6]) == model
        with pytest.raises(NotFound):
            client.models.get("none")


@KINDS
def test_what_can_not_be_learned_from_is_told_at_once(kind: Any, served: Served) -> None:
    """No images, a budget of none, and several kinds of new embeddings for one build."""
    with kind(served.target) as client:
        with pytest.raises(InvalidArgument, match="images is empty"):
            client.models.train()
        with pytest.raises(InvalidArgument, match="budget is 0"):
            client.models.suggest("any", "/images", 0)
        with pytest.raises(NotFound, match="none-such"):
            client.models.calibrate("none-such", "/images", "/labels.csv")
        with pytest.raises(TypeError, match="few_labels"):
            client.indexes.build(learn=True, few_labels={"a": "b"})


def test_labels_are_sent_in_the_form_that_they_are_given_in() -> None:
    """A table on the server's machine, classes, or pairs."""
    assert labels_message(Path("/few.csv")).path == "/few.csv"
    (image,) = labels_message({"a.png": "cat"}).images
    assert (image.path, image.class_id, image.held_out) == ("a.png", "cat", False)
    first, second = labels_message([("a", "b", True), ("a", "c", False)]).pairs
    assert (first.path_b, first.relation, second.path_b, second.relation) == ("b", 1, "c", 2)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ({}, "labels are empty"),
        ({"a.png": 3}, "the label 'a.png': 3 is not of a str each"),
        ({Path("a.png"): "cat"}, "a.png.*: 'cat' is not of a str each"),
        ([("a", "b", "same")], r"the label \('a', 'b', 'same'\) is not \(path, path, True"),
        ([("a", "cat")], r"the label \('a', 'cat'\) is not"),
    ],
)
def test_what_is_no_label_is_named(labels: Any, said: str) -> None:
    """The classes of spreadsheets are numbers, and the relations of tables words."""
    with pytest.raises((TypeError, ValueError), match=said):
        labels_message(labels)
