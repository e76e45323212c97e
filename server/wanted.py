"""What a search asks for besides its query, checked: which searches may be one call, and what hits must be."""

from kinsight.v1.search_service_pb2 import ScoreKind, SearchParams, SearchRequest

from indexer import filters
from indexer.filters import FilterSyntaxError
from indexer.ranking import Ranking
from server.errors import (
    DiversityOutOfRange,
    InvalidGroupBy,
    MinProbabilityOutOfRange,
    MinSimilarityOutOfRange,
    ModelNotCalibrated,
    NprobeOutOfRange,
    ParamsConflict,
    ScoreKindUnknown,
    TargetRecallOutOfRange,
    ThresholdOutOfRange,
    TopKOutOfRange,
)
from server.indexes import ActiveIndex
from server.searching import Condition, Group, Score

DEFAULT_TOP_K = 10
MAX_TOP_K = 1000
ROUNDING = 1e-6  # a recall of 0.9 comes over the wire as 0.89999998

_SCORE_KINDS = frozenset(ScoreKind.values())


def group_of(request: SearchRequest, index: ActiveIndex) -> Group:
    """The group of a request; raises a RequestError or FilterError where a value is out of its range."""
    top_k = _top_k(request)
    if not 1 <= top_k <= MAX_TOP_K:
        raise TopKOutOfRange(f"top_k is {top_k}; it must be 1 to {MAX_TOP_K}")
    params, score = request.params, _score(request, index)
    condition = _condition(request, score)
    if params.HasField("target_recall"):
        return Group(index, top_k, *_operating_point(params, index), condition, score)
    if not params.HasField("nprobe"):
        return Group(index, top_k, None, params.exact, None, condition, score)
    nlist = index.version.manifest.plan["nlist"]  # 0 for a flat index, which scans every row anyway
    if params.nprobe < 1 or (nlist and params.nprobe > nlist):
        allowed = f"1 to {nlist}, the lists of index {index.name}" if nlist else "at least 1"
        raise NprobeOutOfRange(f"nprobe is {params.nprobe}; it must be {allowed}")
    return Group(index, top_k, params.nprobe, params.exact, None, condition, score)


def most_hits(request: SearchRequest) -> int:
    """How many hits a request can have, whether it is refused or not."""
    return min(max(_top_k(request), 0), MAX_TOP_K)


def _top_k(request: SearchRequest) -> int:
    return request.top_k if request.HasField("top_k") else DEFAULT_TOP_K


def _operating_point(params: SearchParams, index: ActiveIndex) -> tuple[int | None, bool, int | None]:
    """nprobe, exact and k_factor of the cheapest way that reached the recall, or of the last that was measured."""
    target = params.target_recall
    if params.HasField("nprobe") or params.exact:
        raise ParamsConflict("target_recall chooses how thoroughly to search; leave out nprobe and exact")
    if not 0 < target <= 1:
        raise TargetRecallOutOfRange(f"target_recall is {target:g}; it must be above 0 and at most 1")
    measured = index.version.manifest.plan.get("measured", ())
    if not measured:  # a flat index, or one of a build that kept only the point it chose
        return None, False, None
    reached = (point for point in measured if point["recall_at_10"] >= target - ROUNDING)
    point = next(reached, measured[-1])
    return point["nprobe"], False, point["k_factor"]


def _score(request: SearchRequest, index: ActiveIndex) -> Score | None:
    if request.score_kind not in _SCORE_KINDS:
        raise ScoreKindUnknown(f"score_kind is {request.score_kind}; it must be one of {', '.join(ScoreKind.keys())}")
    least = request.min_probability if request.HasField("min_probability") else None
    if least is None and request.score_kind != ScoreKind.SCORE_KIND_PROBABILITY:
        return None
    if least is not None and not 0 <= least <= 1:
        raise MinProbabilityOutOfRange(f"min_probability is {least:g}; it must be 0 to 1")
    if index.calibration is None:
        raise ModelNotCalibrated(
            f"model {index.model} of index {index.name} has no calibration, so similarities have no probabilities; "
            f"make one with `kinsight calibrate {index.model}` and labels, or search by min_similarity",
            index_model=index.model,
        )
    return Score(index.calibration, None if least is None else index.calibration.false_accept_rate(least))


def _condition(request: SearchRequest, score: Score | None) -> Condition | None:
    ranking = _ranking(request, score)
    if request.filter:
        return Condition(request.filter, filters.parse(request.filter), ranking)
    return None if ranking is None else Condition("", None, ranking)


def _ranking(request: SearchRequest, score: Score | None) -> Ranking | None:
    least = _least_similarity(request, score)
    threshold = request.near_duplicate_threshold if request.HasField("near_duplicate_threshold") else None
    if least is None and threshold is None and not request.group_by and not request.diversity:
        return None
    if threshold is not None and not 0 < threshold <= 1:
        raise ThresholdOutOfRange(f"near_duplicate_threshold is {threshold:g}; it must be above 0 and at most 1")
    if not 0 <= request.diversity <= 1:
        raise DiversityOutOfRange(f"diversity is {request.diversity:g}; it must be 0 to 1")
    try:
        group_by = filters.parse_field(request.group_by) if request.group_by else None
    except FilterSyntaxError as error:
        raise InvalidGroupBy(f"group_by, column {error.column}: {error.problem}") from error
    return Ranking(
        min_similarity=least,
        near_duplicate_threshold=threshold,
        group_by=group_by,
        diversity=request.diversity,
    )


def _least_similarity(request: SearchRequest, score: Score | None) -> float | None:
    """The higher of the two thresholds, as a probability never falls with similarity; None where there is none."""
    wanted = []
    if request.HasField("min_similarity"):
        if not -1 <= request.min_similarity <= 1:
            raise MinSimilarityOutOfRange(f"min_similarity is {request.min_similarity:g}; it must be -1 to 1")
        wanted.append(request.min_similarity)
    if score is not None and request.HasField("min_probability"):
        wanted.append(score.calibration.least_similarity(request.min_probability))
    return max(wanted, default=None)
