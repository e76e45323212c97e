"""ModelService over a real server, with real learning in processes of its own."""

import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import grpc
import pytest
from click.testing import CliRunner
from google.longrunning import operations_pb2
from google.rpc import code_pb2
from kinsight.v1.index_service_pb2 import (
    ActivateVersionRequest,
    BuildVersionRequest,
    BuildVersionResponse,
    FineTune,
    Version,
)
from kinsight.v1.labels_pb2 import LabelledImage, LabelledPair, Labels
from kinsight.v1.model_service_pb2 import (
    CalibrateRequest,
    CalibrateResponse,
    FineTuneRequest,
    FineTuneResponse,
    GetModelRequest,
    ListModelsRequest,
    SuggestLabelsRequest,
    SuggestLabelsResponse,
    TrainRequest,
    TrainResponse,
)
from kinsight.v1.operation_metadata_pb2 import OperationMetadata
from kinsight.v1.search_service_pb2 import SCORE_KIND_PROBABILITY, SearchRequest

from clients.cli.command import kinsight
from clients.cli.finetune import finetune
from clients.cli.suggest import suggest
from indexer import operations
from indexer.build import build
from indexer.locks import hold
from indexer.sources import Collection, FileSource, open_collection
from server import learning, progress
from server.errors import InvalidLabels
from server.folders import Folders
from server.indexes import Indexes
from server.learning import table_of
from server.news import News
from tests.conftest import School, copied
from tests.serving import Stubs, reason_of, server_process, serving
from tests.trainer import small
from trainer import recipe_files
from trainer.labels import LabelsError, read_labels
from trainer.recipe import taught
from trainer.run_directory import finish_run, new_run
from trainer.start import starting_from


@pytest.fixture
def school(learned_school: School, tmp_path: Path) -> School:
    """A copy to change."""
    return copied(learned_school, tmp_path)


@pytest.fixture
def stubs(school: School) -> Iterator[Stubs]:
    """Of a server on that store; the pictures may be read."""
    with serving(school.store, folders=Folders((school.pictures,))) as served, Stubs(served.target) as stubs:
        yield stubs


def _few() -> Labels:
    """Two labelled pictures of each colour to learn from, four of each held out."""
    kept = [(number, number >= 8) for number in (*range(8), *range(24, 40))]
    rows = [LabelledImage(path=f"{n:02d}.png", class_id=f"colour {n % 4}", held_out=out) for n, out in kept]
    return Labels(images=rows)


def _response(done: Any, kind: Any) -> Any:
    assert not done.HasField("error"), done.error
    message = kind()
    assert done.response.Unpack(message)
    return message


def _reason(call: Any, request: Any) -> tuple[str, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call(request, timeout=30)
    return reason_of(caught.value)


@pytest.mark.slow
def test_suggested_images_are_labelled_and_learned_from(stubs: Stubs, school: School) -> None:
    """Labels that come with a request make a new model that tells what it is; a repetition is not done twice."""
    request = SuggestLabelsRequest(model=school.model, images=str(school.pictures), budget=8)
    done = stubs.ended(stubs.models.SuggestLabels(request))
    suggested = _response(done, SuggestLabelsResponse)
    paths = [one.path for one in suggested.suggested]
    assert (len(set(paths)), suggested.images, suggested.labelled, suggested.failed) == (8, 40, 0, 0)
    assert all((school.pictures / path).is_file() for path in paths)
    assert [one.nearest in paths[:place] for place, one in enumerate(suggested.suggested)] == [False] + [True] * 7
    assert [one.HasField("similarity") for one in suggested.suggested] == [False] + [True] * 7
    assert sum(one.stands_for for one in suggested.suggested) == 40
    known = Labels(images=[LabelledImage(path=path, class_id="any") for path in paths[:5]])
    more = SuggestLabelsRequest(
        model=school.model, images=str(school.pictures), budget=8, labels=known, method="usl-t"
    )
    others = _response(stubs.ended(stubs.models.SuggestLabels(more), timeout_s=300), SuggestLabelsResponse)
    assert not {one.path for one in others.suggested} & {*paths[:5]}
    assert (others.images, others.labelled) == (40, 5)

    teach = FineTuneRequest(
        model=school.model, images=str(school.pictures), labels=_few(), epochs=1, seed=1, request_id="one"
    )
    begun = stubs.models.FineTune(teach)
    done = stubs.ended(begun, timeout_s=300)
    metadata = OperationMetadata()
    assert done.metadata.Unpack(metadata)
    assert (metadata.kind, metadata.index) == (OperationMetadata.KIND_FINE_TUNE, "")
    taught = _response(done, FineTuneResponse)
    assert (taught.model.images, taught.model.labelled, taught.compared) == (24, 8, 8)
    assert (taught.HasField("beats_start"), taught.HasField("beats_supervised")) == (True, True)
    assert 0 < taught.supervised["recall_at_1"] <= 1
    assert taught.model.metrics["trained.recall_at_1"] > 0
    assert stubs.models.FineTune(teach).name == begun.name
    models = stubs.models.ListModels(ListModelsRequest()).models
    assert [model.model for model in models] == [school.model, taught.model.model]
    assert stubs.models.GetModel(GetModelRequest(model=taught.model.model[:9])) == taught.model


def _search_until(target: str, picture: bytes, ended: threading.Event) -> Counter[int]:
    """Search until the end; returns how many answers were of each version, and raises at a query that fails."""
    answered = Counter[int]()
    with Stubs(target) as stubs:
        while not ended.wait(0.05):  # a pause, or clients on few cores leave nothing for work that is behind them
            found = stubs.search.Search(SearchRequest(image=picture, top_k=5), timeout=30)
            assert len(found.hits) == 5
            answered[found.version] += 1
    return answered


@pytest.mark.slow
def test_an_index_is_taught_by_labels_while_it_is_searched(school: School) -> None:
    """Suggest, label, build with what was learned, measured on labels held out; four clients lose no query."""
    build("photos", school.pictures, model=school.model, store=school.store, device="cpu", progress=lambda *_: None)
    ended, picture = threading.Event(), (school.pictures / "00.png").read_bytes()
    folders = Folders((school.pictures,))
    with (
        serving(school.store, folders=folders) as served,
        Stubs(served.target) as stubs,
        ThreadPoolExecutor(4) as pool,
    ):
        searches = [pool.submit(_search_until, served.target, picture, ended) for _ in range(4)]
        try:
            ask = SuggestLabelsRequest(model=school.model, images=str(school.pictures), budget=12)
            suggested = _response(stubs.ended(stubs.models.SuggestLabels(ask), timeout_s=300), SuggestLabelsResponse)
            paths = [one.path for one in suggested.suggested]
            rows = [LabelledImage(path=path, class_id=f"{int(path[:2]) % 4}", held_out=False) for path in paths]
            others = [n for n in range(40) if f"{n:02d}.png" not in paths]
            rows += [LabelledImage(path=f"{n:02d}.png", class_id=f"{n % 4}", held_out=True) for n in others]
            request = BuildVersionRequest(fine_tune=FineTune(labels=Labels(images=rows)), epochs=1)
            done = stubs.ended(stubs.indexes.BuildVersion(request), timeout_s=300)
            built = _response(done, BuildVersionResponse)
            if built.version.state != Version.STATE_ACTIVE:  # refused by what was measured; the swap is proven anyway
                stubs.indexes.ActivateVersion(ActivateVersionRequest(index="photos", version=2), timeout=60)
            ended.wait(2)  # the new version answers too
        finally:
            ended.set()
        for search in searches:
            assert set(search.result(30)) == {1, 2}
        measured = built.evaluation.comparison
        assert measured.labelled_items == len(others)
        better = measured.label_recall_at_1.candidate > measured.label_recall_at_1.active
        assert built.version.model != school.model
        assert (built.version.state == Version.STATE_ACTIVE) == better, built.version.refusal
        assert better or "learning did not help" in built.version.refusal or "down from" in built.version.refusal


@pytest.mark.slow
def test_labels_that_were_all_learned_from_do_not_judge(school: School) -> None:
    """The measure without labels decides then, and a warning says so; `learn` takes a number of epochs as well."""
    build("photos", school.pictures, model=school.model, store=school.store, device="cpu", progress=lambda *_: None)
    rows = [LabelledImage(path=f"{n:02d}.png", class_id=f"{n % 4}") for n in range(8)]
    with serving(school.store) as served, Stubs(served.target) as stubs:
        request = BuildVersionRequest(fine_tune=FineTune(labels=Labels(images=rows), method="supervised"), epochs=1)
        built = _response(stubs.ended(stubs.indexes.BuildVersion(request), timeout_s=300), BuildVersionResponse)
        assert not built.evaluation.comparison.HasField("label_recall_at_1")
        assert any("no label that was held out measured" in warning for warning in built.warnings)
        learn = BuildVersionRequest(learn=True, epochs=1)
        built = _response(stubs.ended(stubs.indexes.BuildVersion(learn), timeout_s=300), BuildVersionResponse)
        assert built.version.version == 3
        assert _reason(stubs.indexes.BuildVersion, BuildVersionRequest(epochs=1))[1] == "INVALID_LEARNING"


@pytest.mark.slow
def test_pairs_are_learned_from(stubs: Stubs, school: School) -> None:
    """What is the same and what is not, sent along."""
    same, different = LabelledPair.RELATION_SAME, LabelledPair.RELATION_DIFFERENT
    pairs = [("00.png", "04.png", same), ("01.png", "05.png", same), ("00.png", "01.png", different)]
    rows = [LabelledPair(path_a=a, path_b=b, relation=relation) for a, b, relation in pairs]
    request = FineTuneRequest(
        model=school.model, images=str(school.pictures), labels=Labels(pairs=rows), epochs=1, method="supervised"
    )
    taught = _response(stubs.ended(stubs.models.FineTune(request)), FineTuneResponse)
    assert (taught.model.objective, taught.model.labelled) == ("supervised", 4)
    assert not taught.HasField("beats_start")


@pytest.mark.slow
def test_training_goes_on_after_the_server_was_killed(school: School) -> None:
    """The next server's process finishes the same run, under the same operation."""
    with server_process(school.store) as (process, _):
        process.send_signal(signal.SIGKILL)  # dead before the work that follows is taken up
    words = (
        "train",
        str(school.pictures),
        "--from",
        school.model,
        "--epochs",
        "2",
        "--store",
        str(school.store.root),
    )
    left = operations.queue(school.store.operations, "train", "", (*words, "--json"), request_id="x")
    with server_process(school.store) as (_, target), Stubs(target) as stubs:
        done = stubs.ended(
            stubs.operations.GetOperation(operations_pb2.GetOperationRequest(name=f"operations/{left.id}"))
        )
    assert _response(done, TrainResponse).model.images == 40
    assert (school.store.runs / left.id / "recipe.toml").is_file()


@pytest.mark.parametrize(("verb", "kind"), [("train", TrainResponse), ("finetune", FineTuneResponse)])
def test_a_training_that_was_killed_after_its_run_s_end_has_its_model_for_an_answer(
    stubs: Stubs, school: School, tmp_path: Path, verb: str, kind: Any
) -> None:
    """What else it found is in the run's report, which a warning says."""
    (tmp_path / "few.csv").write_text("path,class_id\n00.png,a\n01.png,b\n")
    recipe = starting_from(small.one_epoch(), school.model)
    if verb == "finetune":
        recipe = taught(recipe, "stml_semi")
    finish_run(new_run(school.store.runs, recipe, "ended"), school.model)
    taught_by = [school.model, school.pictures, "--labels", tmp_path / "few.csv"]
    words = [verb, *(taught_by if verb == "finetune" else [school.pictures]), "--resume", "ended"]
    done = CliRunner().invoke(kinsight, list(map(str, [*words, "--store", school.store.root])))
    assert done.exit_code == 0, done.stderr
    (left,) = operations.list_operations(school.store.operations)
    told = stubs.operations.GetOperation(operations_pb2.GetOperationRequest(name=f"operations/{left.id}"))
    response = _response(told, kind)
    assert response.model.model == school.model
    assert [*response.warnings] == [
        "run 'ended' was finished already: what it left out and warned of is in its report alone"
    ]


@pytest.mark.slow
def test_only_one_learns_at_a_time(stubs: Stubs, school: School) -> None:
    """A second one is ABORTED, not queued."""
    request = TrainRequest(model=school.model, images=[str(school.pictures)])
    with hold(school.store.root / ".learner"):
        assert _reason(stubs.models.Train, request) == ("ABORTED", "LEARNING_IN_PROGRESS")
    trained = _response(stubs.ended(stubs.models.Train(request)), TrainResponse)
    assert trained.model.model != school.model


@pytest.mark.slow
def test_fine_tuning_that_is_cancelled_leaves_no_model(stubs: Stubs, school: School) -> None:
    """It ends CANCELLED while it learns, having told what is wrong, and the models are those of before."""
    (school.pictures / "torn.png").touch()
    labels = _few()
    labels.images.add(path="gone.png", class_id="colour 1")
    request = FineTuneRequest(model=school.model, images=str(school.pictures), labels=labels, epochs=10_000)
    begun = stubs.models.FineTune(request)
    until = time.monotonic() + 60
    told = OperationMetadata()
    while told.stage != "train":
        assert time.monotonic() < until, told
        time.sleep(0.2)
        stubs.operations.GetOperation(operations_pb2.GetOperationRequest(name=begun.name)).metadata.Unpack(told)
    unknown, skipped, *_ = told.warnings
    assert "1 of the paths of labels.images, for example gone.png; " in unknown
    assert skipped.startswith("skipped 1 of the 41 images, for example torn.png: ")
    stubs.operations.CancelOperation(operations_pb2.CancelOperationRequest(name=begun.name))
    done = stubs.ended(begun)
    assert done.error.code == code_pb2.CANCELLED
    assert school.store.model_ids() == [school.model]


@pytest.mark.slow
def test_a_model_is_calibrated(school: School, stubs: Stubs) -> None:
    """The response has what was measured, the model has it too, and the next search uses it; too few are refused."""
    build("photos", school.pictures, model=school.model, store=school.store, device="cpu", progress=lambda *_: None)
    rows = [LabelledImage(path=f"{n:02d}.png", class_id=f"colour {n % 4}") for n in range(40)]
    request = CalibrateRequest(model=school.model, images=str(school.pictures), labels=Labels(images=rows), things=9)
    done = _response(stubs.ended(stubs.models.Calibrate(request)), CalibrateResponse)
    fitted = done.calibration
    assert (fitted.images, fitted.classes, fitted.same, fitted.different, fitted.things) == (40, 4, 180, 600, 9)
    assert fitted.HasField("ece_hits")
    assert 0 <= fitted.ece_pairs < 1
    assert stubs.models.GetModel(GetModelRequest(model=school.model)).calibration == fitted
    likely = SearchRequest(index="photos", item="00.png", top_k=5, score_kind=SCORE_KIND_PROBABILITY)
    assert stubs.search.Search(likely, timeout=30).hits[0].HasField("probability")

    few = CalibrateRequest(model=school.model, images=str(school.pictures), labels=Labels(images=rows[:4]))
    told = stubs.ended(stubs.models.Calibrate(few))
    assert reason_of(told.error) == ("INVALID_ARGUMENT", "LABELS_NOT_CALIBRATABLE")


def test_bad_requests_are_answered_with_reasons(stubs: Stubs, school: School) -> None:
    """Before anything is started."""
    images = str(school.pictures)
    good: dict[str, Any] = {"model": school.model, "images": images}
    image = LabelledImage(path="00.png", class_id="a")
    cases: list[tuple[Any, Any, tuple[str, str]]] = [
        (stubs.models.GetModel, GetModelRequest(model="none"), ("NOT_FOUND", "MODEL_NOT_FOUND")),
        (stubs.models.Train, TrainRequest(), ("INVALID_ARGUMENT", "INVALID_PATH")),
        (stubs.models.Train, TrainRequest(images=["/etc"]), ("PERMISSION_DENIED", "PATH_NOT_ALLOWED")),
        (
            stubs.models.Train,
            TrainRequest(images=[images], recipe="/etc/x.toml"),
            ("INVALID_ARGUMENT", "INVALID_LEARNING"),
        ),
        (stubs.models.Train, TrainRequest(images=[images], epochs=-1), ("INVALID_ARGUMENT", "INVALID_LEARNING")),
        (stubs.models.FineTune, FineTuneRequest(**good), ("INVALID_ARGUMENT", "INVALID_LABELS")),
        (
            stubs.models.FineTune,
            FineTuneRequest(**good, labels=Labels(images=[image], path=images)),
            ("INVALID_ARGUMENT", "INVALID_LABELS"),
        ),
        (
            stubs.models.FineTune,
            FineTuneRequest(**good, labels=Labels(images=[LabelledImage(path="00.png")])),
            ("INVALID_ARGUMENT", "INVALID_LABELS"),
        ),
        (
            stubs.models.FineTune,
            FineTuneRequest(**good, labels=Labels(pairs=[LabelledPair(path_a="00.png", path_b="01.png")])),
            ("INVALID_ARGUMENT", "INVALID_LABELS"),
        ),
        (stubs.models.Calibrate, CalibrateRequest(**good), ("INVALID_ARGUMENT", "INVALID_LABELS")),
        (stubs.models.Calibrate, CalibrateRequest(**good, things=1), ("INVALID_ARGUMENT", "INVALID_LEARNING")),
        (
            stubs.models.SuggestLabels,
            SuggestLabelsRequest(**good, budget=3, method="--help"),
            ("INVALID_ARGUMENT", "INVALID_LEARNING"),
        ),
        (stubs.models.SuggestLabels, SuggestLabelsRequest(**good), ("INVALID_ARGUMENT", "BUDGET_OUT_OF_RANGE")),
        (
            stubs.models.SuggestLabels,
            SuggestLabelsRequest(**good, budget=3, seed=-1),
            ("INVALID_ARGUMENT", "INVALID_LEARNING"),
        ),
    ]
    for call, request, expected in cases:
        assert _reason(call, request) == expected, request
    assert not list(school.store.labels.glob("*")), "nothing was written for what was refused"


@pytest.mark.parametrize(
    ("again", "said"),
    [
        (LabelledImage(path="00.png", class_id="b"), "has two classes, 'a' and 'b'"),
        (LabelledImage(path="00.png", class_id="a", held_out=True), "is held out and learned from"),
    ],
)
def test_an_image_with_two_labels_is_named(school: School, again: LabelledImage, said: str) -> None:
    """At once, not by a line of a table that the server made; the same label twice, as typed anyhow, is fine."""
    names = ("a", "a ", "\u00e9", "e\u0301")
    rows = [LabelledImage(path=f"0{place // 2}.png", class_id=name) for place, name in enumerate(names)]
    assert table_of(Labels(images=rows), school.store, Folders()).exists()
    with pytest.raises(InvalidLabels) as refused:
        table_of(Labels(images=[*rows, again]), school.store, Folders())
    assert str(refused.value) == f"labels.images[4]: '00.png' {said}; an image has one label"


def test_unknown_names_are_refused_at_once_with_those_that_are_known(stubs: Stubs, school: School) -> None:
    """Of recipes and of methods, before an operation is begun that could only fail."""
    learn, choose = "stml-semi, cmsf-semi, supervised", "usl, usl-t"
    recipes = "digits, stml, stml-cub-cars, stml-paper, stml-paper-sop, stml-sop"
    images = str(school.pictures)
    good: dict[str, Any] = {"model": school.model, "images": images}
    build("photos", school.pictures, model=school.model, store=school.store, device="cpu", progress=lambda *_: None)
    cases: list[tuple[Any, Any, str]] = [
        (stubs.models.Train, TrainRequest(images=[images], recipe="x"), f"'x' is no recipe; there are: {recipes}"),
        (stubs.models.FineTune, FineTuneRequest(**good, method="x"), f"'x' is no method; there are: {learn}"),
        (
            stubs.models.SuggestLabels,
            SuggestLabelsRequest(**good, budget=3, method="x"),
            f"'x' is no method; there are: {choose}",
        ),
        (
            stubs.indexes.BuildVersion,
            BuildVersionRequest(index="photos", fine_tune=FineTune(labels=_few(), method="x")),
            f"'x' is no method; there are: {learn}",
        ),
    ]
    for call, request, said in cases:
        with pytest.raises(grpc.RpcError) as caught:
            call(request, timeout=30)
        assert (*reason_of(caught.value), caught.value.details()) == ("INVALID_ARGUMENT", "INVALID_LEARNING", said)
    assert operations.list_operations(school.store.operations) == []


def test_the_server_knows_the_names_that_its_command_knows() -> None:
    """Which does the work, and from whose code it imports none."""
    choices = {
        verb.name: tuple(option.type.choices)
        for verb in (finetune, suggest)
        for option in verb.params
        if option.name == "method" and isinstance(option.type, click.Choice)
    }
    assert choices == {"finetune": learning.LEARNING_METHODS, "suggest": learning.CHOOSING_METHODS}
    assert tuple(recipe_files.names()) == learning.RECIPES


def test_images_that_nobody_has_labelled_yet_are_as_in_a_table(school: School) -> None:
    """What `suggest` gave and a person filled in by half: the others are learned from as unlabelled ones."""
    names = {"00.png": "red", "01.png": "green", "02.png": "", "03.png": " "}
    rows = [LabelledImage(path=path, class_id=name) for path, name in names.items()]
    table = table_of(Labels(images=rows), school.store, Folders())
    labels = read_labels(table, open_collection(school.pictures), to_teach=True)
    assert labels.class_of == {"00.png": 0, "01.png": 1}
    assert labels.warnings == (f"{table}: 2 rows have no class_id: their images count as unlabelled",)
    with pytest.raises(InvalidLabels, match=r"none of the 2 labels\.images has a class_id; write one into some"):
        table_of(Labels(images=rows[2:]), school.store, Folders())


def test_ends_of_lines_in_labels_end_no_row_of_their_table(school: School) -> None:
    """As who parts a file of Windows by lines leaves them in its classes: all of the table could not be read."""
    names = {"00.png": "red\r", "01.png": "green\r\nand blue", "02.png": "red"}
    rows = [LabelledImage(path=path, class_id=name, held_out=path == "02.png") for path, name in names.items()]
    table = table_of(Labels(images=rows), school.store, Folders())
    labels = read_labels(table, open_collection(school.pictures), to_teach=True)
    assert (labels.class_of, labels.class_names) == (
        {"00.png": 0, "01.png": 1, "02.png": 0},
        ("red", "green\r\nand blue"),
    )


def test_pairs_that_contradict_each_other_are_told_by_their_images(stubs: Stubs, school: School) -> None:
    """At once, not by lines of a table that the server made of them."""
    same, different = LabelledPair.RELATION_SAME, LabelledPair.RELATION_DIFFERENT
    pairs = [("00.png", "04.png", same), ("04.png", "08.png", same), ("08.png", "00.png", different)]
    labels = Labels(pairs=[LabelledPair(path_a=a, path_b=b, relation=relation) for a, b, relation in pairs])
    with pytest.raises(grpc.RpcError) as caught:
        stubs.models.FineTune(
            FineTuneRequest(model=school.model, images=str(school.pictures), labels=labels), timeout=30
        )
    assert reason_of(caught.value) == ("INVALID_ARGUMENT", "INVALID_LABELS")
    assert caught.value.details() == (
        "labels.pairs contradicts itself: 00.png = 04.png (row 1), 04.png = 08.png (row 2), but 00.png ≠ 08.png "
        "(row 3); correct or remove one row of each chain"
    )


@pytest.mark.slow
def test_what_fails_in_the_process_has_its_own_reason(stubs: Stubs, school: School) -> None:
    """Labels of unknown images, and a budget above the collection."""
    good: dict[str, Any] = {"model": school.model, "images": str(school.pictures)}
    lost = Labels(images=[LabelledImage(path=f"{n}.png", class_id=f"{n % 2}") for n in (100, 101)])
    told = stubs.ended(stubs.models.FineTune(FineTuneRequest(**good, labels=lost)))
    assert reason_of(told.error) == ("INVALID_ARGUMENT", "INVALID_LABELS")
    told = stubs.ended(stubs.models.SuggestLabels(SuggestLabelsRequest(**good, budget=41)))
    assert reason_of(told.error) == ("INVALID_ARGUMENT", "BUDGET_OUT_OF_RANGE")


@pytest.mark.slow
def test_labels_that_teach_nothing_are_told_alike_by_both_that_learn_from_them(stubs: Stubs, school: School) -> None:
    """A build trains in a process of its process, whose error is as precise as that of learning alone."""
    build("photos", school.pictures, model=school.model, store=school.store, device="cpu", progress=lambda *_: None)
    labels = Labels(images=[LabelledImage(path=path, class_id="one") for path in ("00.png", "04.png")])
    alone = FineTuneRequest(model=school.model, images=str(school.pictures), labels=labels)
    told = stubs.ended(stubs.models.FineTune(alone)).error
    built = stubs.ended(stubs.indexes.BuildVersion(BuildVersionRequest(fine_tune=FineTune(labels=labels)))).error
    assert reason_of(built) == reason_of(told) == ("INVALID_ARGUMENT", "INVALID_LABELS")
    assert [detail.TypeName() for detail in built.details] == [detail.TypeName() for detail in told.details]
    said = "labels.images: its 2 images to learn from are of 1 class"
    assert (said in told.message, said in built.message) == (True, True)


@pytest.mark.slow
def test_doubted_labels_are_learned_from_where_a_request_says_so(school: School) -> None:
    """By the client and by the command, alone and in a build; the process of the operation hears of it."""
    build("photos", school.pictures, model=school.model, store=school.store, device="cpu", progress=lambda *_: None)
    few = school.pictures / "few.csv"
    few.write_text("path,class_id\n00.png,one\n04.png,one\n")  # which ends it soon
    learning = (["finetune", school.model, str(school.pictures), "--labels"], ["rebuild", "photos", "--finetune"])
    with serving(school.store, folders=Folders((school.pictures,))) as served:
        for words in learning:
            told = CliRunner().invoke(
                kinsight, ["remote", *words, str(few), "--keep-doubted", "--server", served.target]
            )
            assert "its 2 images to learn from are of 1 class" in told.stderr
    done = operations.list_operations(school.store.operations)
    assert [one.kind for one in done if "--keep-doubted" in one.arguments] == ["finetune", "rebuild"]


def test_rows_of_a_request_are_counted_where_its_labels_have_ends_of_lines(school: School) -> None:
    """A class or a path of two lines is one row: those after it were told by rows too high."""
    labelled = (("a", "1\n2\r\n3"), ("b\nc", "4"), ("./a", "5"))
    labels = Labels(images=[LabelledImage(path=path, class_id=name) for path, name in labelled])
    table = table_of(labels, school.store, Folders())
    with pytest.raises(LabelsError) as refused:
        read_labels(table, Collection(Path("/"), (FileSource("a", "/", "a"),)), to_teach=True)
    assert learning.by_field(str(refused.value), ("finetune", "--labels", str(table))).startswith(
        "labels.images, row 3: './a' has two classes"
    )


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (
            Labels(images=[LabelledImage(path=path, class_id=name) for path, name in (("a", "1"), ("./a", "2"))]),
            "labels.images, row 2: 'line 9' has two classes",
        ),
        (
            Labels(pairs=[LabelledPair(path_a="a", path_b="b", relation=LabelledPair.RELATION_SAME)]),
            "labels.pairs, row 2: 'line 9' has two classes",
        ),
    ],
)
def test_labels_of_a_request_are_told_of_by_its_field(school: School, labels: Labels, said: str) -> None:
    """Not by the table that the server made of them, in warnings and errors alike; a table of the client's stays."""
    table = str(table_of(labels, school.store, Folders()))
    told = f"{table}, line 3: 'line 9' has two classes"
    words = ("finetune", school.model, "--labels", table)
    assert learning.by_field(told, words) == said
    assert learning.by_field(told, ("finetune", "--labels", "/photos/few.csv")) == told
    result = {"compared": 0, "skipped": [], "suspects": [], "unknown_labels": [], "warnings": [told]}
    queued = operations.queue(school.store.operations, "finetune", "", words)
    done = replace(queued, state="done", result={**result, "model": school.model})
    with closing(Indexes(school.store, None, News.alone())) as indexes:
        answer = progress.message(indexes, school.store, done)
        assert _response(answer, FineTuneResponse).warnings == [said]
        failed = replace(done, state="failed", error=told, error_types=("LabelsError",), result={})
        assert progress.message(indexes, school.store, failed).error.message == said
    Path(table).unlink()
    assert learning.by_field(told, words) == "labels, row 2: 'line 9' has two classes"
