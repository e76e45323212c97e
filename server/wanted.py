"""What a search asks for besides its query, checked: which searches may be one call, and what hits must be."""

from kinsight.v1.search_service_pb2 import SearchParams, SearchRequest

from indexer import filters
from indexer.filters import FilterSyntaxError
from indexer.ranking import Ranking
from server.errors import (
    DiversityOutOfRange,
    InvalidGroupBy,
    MinSimilarityOutOfRange,
    NprobeOutOfRange,
    ParamsConflict,
    TargetRecallOutOfRange,
    ThresholdOutOfRange,
    TopKOutOfRange,
)
from server.indexes import ActiveIndex
from server.searching import Condition, Group

DEFAULT_TOP_K = 10
MAX_TOP_K = 1000
ROUNDING = 1e-6  # a recall of 0.9 comes over the wire as 0.89999998


def group_of(request: SearchRequest, index: ActiveIndex) -> Group:
    """The group of a request; raises a RequestError or FilterError where a value is out of its range."""
    top_k = request.top_k if request.HasField("top_k") else DEFAULT_TOP_K
    if not 1 <= top_k <= MAX_TOP_K:
        raise TopKOutOfRange(f"top_k is {top_k}; it must be 1 to {MAX_TOP_K}")
    params, condition = request.params, _condition(request)
    if params.HasField("target_recall"):
        return Group(index, top_k, *_operating_point(params, index), condition)
    if not params.HasField("nprobe"):
        return Group(index, top_k, None, params.exact, None, condition)
    nlist = index.version.manifest.plan["nlist"]  # 0 for a flat index, which scans every row anyway
    if params.nprobe < 1 or (nlist and params.nprobe > nlist):
        allowed = f"1 to {nlist}, the lists of index {index.name}" if nlist else "at least 1"
        raise NprobeOutOfRange(f"nprobe is {params.nprobe}; it must be {allowed}")
    return Group(index, top_k, params.nprobe, params.exact, None, condition)


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


def _condition(request: SearchRequest) -> Condition | None:
    ranking = _ranking(request)
    if request.filter:
        return Condition(request.filter, filters.parse(request.filter), ranking)
    return None if ranking is None else Condition("", None, ranking)


def _ranking(request: SearchRequest) -> Ranking | None:
    least = request.min_similarity if request.HasField("min_similarity") else None
    threshold = request.near_duplicate_threshold if request.HasField("near_duplicate_threshold") else None
    if least is None and threshold is None and not request.group_by and not request.diversity:
        return None
    if least is not None and not -1 <= least <= 1:
        raise MinSimilarityOutOfRange(f"min_similarity is {least:g}; it must be -1 to 1")
    if threshold is not None and not 0 < threshold <= 1:
        raise ThresholdOutOfRange(f"near_duplicate_threshold is {threshold:g}; it must be above 0 and at most 1")
    if not 0 <= request.diversity <= 1:
        raise DiversityOutOfRange(f"diversity is {request.diversity:g}; it must be 0 to 1")
    try:
        group_by = filters.parse_field(request.group_by) if request.group_by else None
    except FilterSyntaxError as error:
        raise InvalidGroupBy(f"group_by is not a field: {error}") from error
    return Ranking(
        min_similarity=least,
        near_duplicate_threshold=threshold,
        group_by=group_by,
        diversity=request.diversity,
    )
