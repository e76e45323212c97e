"""Labels to learn from: what tables of classes and of pairs say, and what is wrong with them."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from indexer.sources import Collection, FileSource, SourceError
from trainer.known import Known, Taught, read_taught
from trainer.labels import LabelsError
from trainer.suspects import Suspect, copies_at_odds, find_suspects

NAMES = ("a.png", "b.png", "c.png", "d.png", "e.png", "f.png")


@pytest.fixture
def collection(tmp_path: Path) -> Collection:
    return Collection(tmp_path, tuple(FileSource(name, str(tmp_path), name) for name in NAMES))


def taught(collection: Collection, text: str, encoding: str = "utf-8") -> Taught:
    table = collection.root / "few.csv"
    table.write_text(text, encoding)
    return read_taught(table, collection)


def test_classes_of_the_training_split_teach_and_the_others_judge(collection: Collection) -> None:
    """Blank classes and unknown paths are left out and told, repeated rows count once, and classes are numbered."""
    rows = "a.png,crow,train\nb.png,wren,test\nc.png,wren,test\nd.png,crow,train\ne.png,tit,train\nf.png,,train\n"
    found = taught(collection, f"path,class_id,split\n{rows}a.png,crow,train\ngone.png,tit,train\n")
    assert found.class_of == {"a.png": 0, "d.png": 0, "e.png": 1}
    assert found.apart is None
    assert found.judged is not None
    assert [source.item for source in found.judged.judging(collection.sources)] == ["b.png", "c.png"]
    assert [source.item for source in found.judged.training(collection.sources)] == [
        "a.png",
        "d.png",
        "e.png",
        "f.png",
    ]
    assert found.unknown == ("gone.png",)
    table = collection.root / "few.csv"
    assert found.warnings == (
        f"{table}: 1 rows have no class_id: their images count as unlabelled",
        f"{table}: 1 rows repeat an earlier one",
    )
    assert found.known(NAMES).label.tolist() == [0, -1, -1, 0, 1, -1]


def test_without_a_split_all_rows_teach(collection: Collection) -> None:
    """There is nothing to judge on; one image a class is told to be little."""
    found = taught(collection, "path,class_id\na.png,1\nb.png,2\n")
    assert (found.class_of, found.judged) == ({"a.png": 0, "b.png": 1}, None)
    (warning,) = found.warnings
    assert "no two images share a class" in warning


def test_pairs_make_classes_that_only_some_of_are_apart(collection: Collection) -> None:
    """What is the same is one class through any chain; two classes are different only where a pair says so."""
    rows = "a.png,b.png,same\nb.png,c.png,same\nc.png,d.png,different\ne.png,f.png,different\nb.png,a.png,same\n"
    found = taught(collection, f"path_a,path_b,relation\n{rows}gone.png,a.png,same\n")
    assert found.class_of["a.png"] == found.class_of["b.png"] == found.class_of["c.png"]
    assert len(set(found.class_of.values())) == 4
    known = found.known(NAMES)
    same, different = known.relations(known.label, known.label)
    for i, one in enumerate(NAMES):
        for j, other in enumerate(NAMES):
            together = {one, other} <= {"a.png", "b.png", "c.png"} or one == other
            told = ({"a.png", "b.png", "c.png"}, {"d.png"}), ({"e.png"}, {"f.png"})
            apart = any((one in p and other in q) or (one in q and other in p) for p, q in told)
            assert (bool(same[i, j]), bool(different[i, j])) == (together, apart), (one, other)
    assert found.unknown == ("gone.png",)
    assert found.warnings == (f"{collection.root / 'few.csv'}: 1 rows repeat an earlier one",)
    assert found.judged is None


def test_unlabelled_images_are_neither_same_nor_different() -> None:
    """Whatever an image is compared with, -1 says nothing, with classes and with pairs."""
    label = torch.tensor([-1, 0, 1, -1, 0])
    for known in (Known(label), Known(label, torch.tensor([[False, True], [True, False]]))):
        same, different = known.relations(label, label)
        assert same.tolist() == [[i == j != -1 for j in label.tolist()] for i in label.tolist()]
        assert different.tolist() == [[{i, j} == {0, 1} for j in label.tolist()] for i in label.tolist()]
        assert known.classes == [0, 1]


def test_pairs_that_contradict_each_other_are_named_with_their_lines(collection: Collection) -> None:
    """The shortest chain of what is the same is told, and the pair that says otherwise."""
    rows = 'a.png,b.png,same\n\nc.png,b.png,same\n"d\n.png",e.png,different\n,,\nc.png,a.png,different\n'
    with pytest.raises(LabelsError) as raised:
        taught(collection, f"path_a,path_b,relation\n{rows}")
    assert str(raised.value) == (
        f"{collection.root / 'few.csv'} contradicts itself: a.png = b.png (line 2), b.png = c.png (line 4), "
        "but a.png ≠ c.png (line 8); correct or remove one row of each chain"
    )


def test_of_many_contradictions_five_are_named_and_the_rest_counted(collection: Collection) -> None:
    """A table that is wrong throughout makes no endless message."""
    names = [name for name in NAMES if name != "f.png"]
    same = "".join(f"{one},{other},same\n" for one, other in pairwise(names))
    different = "".join(f"{one},{other},different\n" for i, one in enumerate(names) for other in names[i + 1 :])
    with pytest.raises(LabelsError, match=r"and 5 more; correct or remove one row of each chain$"):
        taught(collection, f"path_a,path_b,relation\n{same}{different}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no column path, class_id; its columns are: none, it is empty"),
        ("path,class_id\n", "has a header and no row; write a line for each image"),
        ('path,class_id\na.png,1\n"b.png,2\nc.png,3\n', "line 3: .*; is a quote there not closed"),
        ("path,class_id,path_a,path_b,relation\na.png,1,b.png,c.png,same\n", "it is of classes or of pairs"),
        ("path,class_id\na.png,\nb.png, \n", "none of its 2 rows has a class_id; write a class into some"),
        ("path,class_id\nx.png,1\ny.png,2\n", "none of its 2 paths is in .*, for example 'x.png'"),
        ("path,class_id\na.png,1\nb.png,1\n", "its 2 images to learn from are of 1 class"),
        ("path,class_id,split\na.png,1,train\nb.png,2,test\n", "its 1 images to learn from are of 1 class"),
        ("path,class_id,split\na.png,1,test\nb.png,1,rest\nc.png,1,test\n", "none of its 3 labelled images is to"),
        ("path,class_id,split\na.png,1,train\nb.png,2,query\n", "query alone is nothing to judge on"),
        ("path,class_id\na.png,1\na.png,2\nb.png,2\n", "line 3: 'a.png' has two classes, '1' and '2'; an"),
        ("path_a,path_b\na.png,b.png\n", "has no column relation"),
        ("path_a,path_b,relation\n", "none of its 0 pairs of images that are there is 'different'"),
        ("path_a,path_b,relation\na.png,b.png,alike\n", "line 2: relation is 'alike'; it must be same or different"),
        ("path_a,path_b,relation\na.png,b.png,same\n", "none of its 1 pairs of images that are there is 'different'"),
        ("path_a,path_b,relation\na.png,a.png,same\n", "line 2: 'a.png' and 'a.png' are one image"),
        ("path_a,path_b,relation\n\n,,\na.png,a.png,same\n", "line 4: 'a.png' and 'a.png' are one image"),
        ("path_a,path_b,relation\n\na.png,b.png,alike\n", "line 3: relation is 'alike'"),
        ("path_a,path_b,relation\nx.png,y.png,different\n", "none of its 1 pairs"),
    ],
)
def test_tables_that_teach_nothing_are_refused(collection: Collection, text: str, message: str) -> None:
    """The message has the table, the line where there is one, and what to do."""
    with pytest.raises((LabelsError, SourceError), match=message):
        taught(collection, text)


def test_a_table_that_is_not_utf8_is_refused(collection: Collection) -> None:
    """It is named, and what to do."""
    with pytest.raises(SourceError, match="is not UTF-8 text"):
        taught(collection, "path,class_id\na.png,Möwe\nb.png,Zaunkönig\n", "latin-1")


def test_suspects_are_what_plain_comparison_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each image nearer to one of another class than to any of its own, the widest gap first, whatever the tiles."""
    draw = torch.Generator().manual_seed(5)
    embeddings = F.normalize(torch.randn(23, 6, generator=draw), dim=1)
    label = torch.randint(-1, 4, (23,), generator=draw)
    label[:2] = torch.tensor([4, -1])  # the only one of its class: it can't agree
    items = [f"{row}.png" for row in range(23)]
    monkeypatch.setattr("trainer.suspects._ROWS", 5)
    found, compared = find_suspects(embeddings, items, Known(label))

    expected, comparable = [], 0
    for i in range(23):
        own = [float(embeddings[i] @ embeddings[j]) for j in range(23) if i != j and label[i] == label[j] >= 0]
        rest = {j: float(embeddings[i] @ embeddings[j]) for j in range(23) if 0 <= label[j] != label[i] >= 0}
        if own and rest:
            comparable += 1
            like = max(rest, key=rest.__getitem__)
            if rest[like] > max(own):
                expected.append((max(own) - rest[like], items[i], items[like]))
    assert compared == comparable
    assert [(suspect.item, suspect.like) for suspect in found] == [(item, like) for _, item, like in sorted(expected)]
    gaps = [suspect.own_similarity - suspect.similarity for suspect in found]
    assert gaps == pytest.approx([gap for gap, _, _ in sorted(expected)], abs=1e-6)


def test_copies_that_are_labelled_as_different_things_are_found() -> None:
    """Of classes, and of pairs where one says so: the same image with two labels, under two names."""
    digests = np.array([b"a", b"b", b"a", b"a", b"b", b"a"], "S32")
    items = [f"{row}.png" for row in range(6)]
    label = torch.tensor([0, 1, 0, 2, -1, 1])
    assert copies_at_odds(items, digests, Known(label)) == [("3.png", "0.png"), ("5.png", "0.png")]
    apart = torch.zeros(3, 3, dtype=torch.bool)
    apart[1, 2] = apart[2, 1] = True
    assert copies_at_odds(items, digests, Known(label, apart)) == [("5.png", "3.png")]
    assert copies_at_odds(items, np.empty(0, "S32"), Known(label)) == []


def test_labels_that_the_metric_agrees_with_are_not_suspected() -> None:
    """Two tight groups with the right labels give none; one wrong label is the first suspect."""
    groups = torch.arange(8) % 2
    embeddings = F.one_hot(groups, 2).float()
    items = [str(row) for row in range(8)]
    assert find_suspects(embeddings, items, Known(groups)) == ([], 8)
    wrong = groups.clone()
    wrong[0] = 1
    found, _ = find_suspects(embeddings, items, Known(wrong))
    assert found == [Suspect(item="0", like="2", similarity=1.0, own_similarity=0.0)]


def test_the_rest_of_the_classes_is_learned_from_without_its_labels(collection: Collection) -> None:
    """Rows of rest are no labels to learn from, nor judged with the others; alone with train they are an error."""
    rows = "path,class_id,split\na.png,1,train\nb.png,2,train\nc.png,1,rest\nd.png,2,rest\n"
    found = taught(collection, rows + "e.png,3,test\n")
    assert set(found.class_of) == {"a.png", "b.png"}
    assert found.judged is not None
    for sources, expected in (
        (found.judged.training(collection.sources), "abcdf"),
        (found.judged.judging(collection.sources), "e"),
        (found.judged.rest(collection.sources), "cd"),
    ):
        assert "".join(source.item[0] for source in sources) == expected
    with pytest.raises(LabelsError, match="rest and train alone is nothing to judge on"):
        taught(collection, rows)


def test_items_that_are_left_out_teach_nothing_and_the_others_what_they_did(collection: Collection) -> None:
    """Also of pairs, where the last things may be those that are left out."""
    found = taught(collection, "path_a,path_b,relation\na.png,b.png,same\nb.png,c.png,different\ne.png,f.png,same\n")
    for gone, expected in (("", (1, 1)), ("ef", (1, 1)), ("b", (0, 0)), ("a", (0, 1))):
        known = found.without(f"{letter}.png" for letter in gone).known(NAMES)
        same, different = known.relations(known.label, known.label)
        assert (int(same[0, 1]), int(different[1, 2])) == expected, gone
        assert [name[0] for name, number in zip(NAMES, known.label, strict=True) if number >= 0] == [
            letter for letter in "abcef" if letter not in gone
        ]
