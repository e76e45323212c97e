"""Two calibrated models in turn, under one threshold, on one running server."""

import dataclasses
from pathlib import Path
from typing import Any

from kinsight.v1.index_service_pb2 import ActivateVersionRequest, RollbackIndexRequest
from kinsight.v1.search_service_pb2 import SCORE_KIND_PROBABILITY, SearchRequest, SearchResponse

from indexer import manifest
from indexer.rebuild import rebuild
from tests.serving import CURVE, Stubs, build_photos, make_model, serving

OTHER = dataclasses.replace(
    CURVE,
    similarities=(-1.0, 0.9, 1.0),
    probabilities=(0.0, 0.45, 0.95),
    acceptance=((0.0, 1.0, 1.0), (0.5, 0.0625, 0.5), (1.0, 0.0, 0.125)),
)


def test_a_threshold_keeps_its_meaning_when_another_calibrated_model_takes_over(tmp_path: Path) -> None:
    """One min_probability on a running server: always that of the model that answers, and as before on going back."""
    store = build_photos(tmp_path, 8)
    manifest.amend_model(store.model(store.model_ids()[0]), CURVE.fields())
    other = make_model(store, seed=1)
    manifest.amend_model(store.model(other), OTHER.fields())

    with serving(store) as served, Stubs(served.target) as stubs:

        def answers() -> tuple[SearchResponse, SearchResponse]:
            query: dict[str, Any] = {"item": "003.png", "top_k": 8, "score_kind": SCORE_KIND_PROBABILITY}
            every = stubs.search.Search(SearchRequest(**query), timeout=30)
            return every, stubs.search.Search(SearchRequest(**query, min_probability=0.5), timeout=30)

        before = answers()
        rebuild("photos", store=store, model=other, device="cpu", activate=False, progress=lambda *_: None)
        stubs.indexes.ActivateVersion(ActivateVersionRequest(version=2))
        after = answers()
        stubs.indexes.RollbackIndex(RollbackIndexRequest())
        again = answers()

    for curve, (every, kept) in ((CURVE, before), (OTHER, after), (CURVE, again)):
        assert [h.probability for h in every.hits] == curve.probability([h.similarity for h in every.hits]).tolist()
        assert [hit.item for hit in kept.hits] == [hit.item for hit in every.hits if hit.probability >= 0.5]
        assert kept.false_accept_rate == curve.false_accept_rate(0.5)
    assert before[0].hits[1].similarity != after[0].hits[1].similarity
    assert [list(answer.hits) for answer in again] == [list(answer.hits) for answer in before]
