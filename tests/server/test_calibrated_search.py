"""Searches that ask for probabilities, over a real port."""

import dataclasses
import time
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
from kinsight.v1.search_service_pb2 import SCORE_KIND_PROBABILITY, SearchRequest

from indexer import manifest
from indexer.calibration import Calibration
from server import app
from tests.serving import CURVE, Stubs, build_photos, reason_of, serving
from tests.waiting import until


def test_probabilities_follow_the_curve_and_their_threshold_leaves_out(tmp_path: Path) -> None:
    """Hits say the curve's value, min_probability keeps those that reach it, and states its false-accept rate."""
    store = build_photos(tmp_path, 8)
    model = store.model(store.model_ids()[0])
    manifest.amend_model(model, CURVE.fields())

    with serving(store) as served, Stubs(served.target) as stubs:
        query: dict[str, Any] = {"item": "003.png", "top_k": 8}
        every = stubs.search.Search(SearchRequest(**query, score_kind=SCORE_KIND_PROBABILITY), timeout=30)
        kept = stubs.search.Search(SearchRequest(**query, min_probability=0.5), timeout=30)
        both = stubs.search.Search(SearchRequest(**query, min_probability=0.0, min_similarity=0.9999), timeout=30)
        with pytest.raises(grpc.RpcError) as refused:
            stubs.search.Search(SearchRequest(**query, min_probability=1.5), timeout=30)

    assert [hit.probability for hit in every.hits] == CURVE.probability([h.similarity for h in every.hits]).tolist()
    assert len(every.hits) == 8
    assert not every.HasField("false_accept_rate")
    assert [hit.item for hit in kept.hits] == [hit.item for hit in every.hits if hit.probability >= 0.5]
    assert kept.false_accept_rate == 0.125
    assert [hit.item for hit in both.hits] == [hit.item for hit in every.hits if hit.similarity >= 0.9999]
    assert reason_of(refused.value) == ("INVALID_ARGUMENT", "MIN_PROBABILITY_OUT_OF_RANGE")


def test_a_new_curve_is_taken_up_while_the_server_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a restart and without a new version; while a manifest can't be read, the last curve stays in use."""
    monkeypatch.setattr(app, "WATCH_INTERVAL_S", 0.02)
    store = build_photos(tmp_path, 8)
    model = store.model(store.model_ids()[0])
    steeper = dataclasses.replace(CURVE, probabilities=(0.0, 0.6, 1.0))

    with serving(store) as served, Stubs(served.target) as stubs:

        def follows(curve: Calibration) -> bool:
            request = SearchRequest(item="003.png", top_k=8, score_kind=SCORE_KIND_PROBABILITY)
            try:
                found = stubs.search.Search(request, timeout=30)
            except grpc.RpcError as error:
                if reason_of(error)[1] != "MODEL_NOT_CALIBRATED":
                    raise
                return False
            assert (found.version, len(found.hits)) == (1, 8)
            expected: list[float] = curve.probability([hit.similarity for hit in found.hits]).tolist()
            return expected == [hit.probability for hit in found.hits]

        assert not follows(CURVE)
        for curve in (CURVE, steeper):
            manifest.amend_model(model, curve.fields())
            until(partial(follows, curve))
        (model / manifest.MANIFEST).write_text("{}")
        time.sleep(0.3)
        assert follows(steeper)


def test_a_model_without_a_curve_refuses_probabilities(tmp_path: Path) -> None:
    """The answer is FAILED_PRECONDITION with a stable reason, and names the command that mends it."""
    with (
        serving(build_photos(tmp_path, 8)) as served,
        Stubs(served.target) as stubs,
        pytest.raises(grpc.RpcError, match="kinsight calibrate") as refused,
    ):
        stubs.search.Search(SearchRequest(item="003.png", min_probability=0.5), timeout=30)

    assert reason_of(refused.value) == ("FAILED_PRECONDITION", "MODEL_NOT_CALIBRATED")
