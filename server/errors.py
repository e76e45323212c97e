"""Why a request can't be answered as it is: the errors of this room.

    RequestError                  the request can't be answered as it is
    ├── QueryMissing              neither image, embedding nor item
    ├── TopKOutOfRange
    ├── NprobeOutOfRange
    ├── DimensionMismatch         the embedding has another length than the model's
    ├── EmbeddingNotFinite        NaN or infinity
    ├── EmbeddingZero             has no direction
    ├── ModelMismatch             the embedding was made by another model than the index's
    ├── ParamsConflict, TargetRecallOutOfRange, MinSimilarityOutOfRange, ThresholdOutOfRange, DiversityOutOfRange,
    │   InvalidGroupBy, MinProbabilityOutOfRange, ScoreKindUnknown   what else a search may say
    ├── ModelNotCalibrated        probabilities are asked for, and the model has no curve
    ├── QueryCountOutOfRange, BatchSizeOutOfRange, InvalidRequestId, RefusedBefore, PageSizeOutOfRange,
    │   InvalidPageToken
    ├── IndexNotFound, IndexNameInvalid, IndexExists
    ├── NoIndex                   the server has nothing to search yet
    ├── VersionNotFound, VersionInUse, NothingToRollBack, StaleEtag
    ├── BuildInProgress, LearningInProgress, MinRecallOutOfRange, ModelNotFound
    ├── InvalidLabels, InvalidLearning, BudgetOutOfRange
    ├── InvalidPath, PathNotAllowed, PathNotFound, PathExists
    ├── OperationFailed           the process of an operation was killed
    ├── TooManyOperations         as many are at work as the server lets
    ├── Overloaded
    └── Draining                  the server is shutting down

`server.answers` says with which gRPC code and reason they are answered.
"""


class RequestError(Exception):
    """A request can't be answered; the message says why and what to do.

    Attributes:
        metadata: the parts of the message that a program may want, for ErrorInfo.
    """

    def __init__(self, message: str, **metadata: str) -> None:
        super().__init__(message)
        self.metadata = metadata


class QueryMissing(RequestError):
    """The request has neither an image, an embedding nor an item to search for."""


class TopKOutOfRange(RequestError):
    """top_k is below 1 or above the most hits of one answer."""


class NprobeOutOfRange(RequestError):
    """Nprobe is below 1 or above the number of lists of the index."""


class DimensionMismatch(RequestError):
    """The embedding has another length than the embeddings of the index."""


class EmbeddingNotFinite(RequestError):
    """The embedding holds NaN or infinity."""


class EmbeddingZero(RequestError):
    """The embedding is all zero, so it has no direction to compare."""


class ModelMismatch(RequestError):
    """The embedding was made by another model; similarities between the two would mean nothing."""


class IndexNotFound(RequestError):
    """The server has no index of that name; the message lists those it has."""


class NoIndex(RequestError):
    """The server has no index to search yet."""


class ParamsConflict(RequestError):
    """target_recall comes with nprobe or exact, which say the same in another way."""


class TargetRecallOutOfRange(RequestError):
    """target_recall is not above 0 and at most 1."""


class MinSimilarityOutOfRange(RequestError):
    """min_similarity is not in [-1, 1]."""


class ThresholdOutOfRange(RequestError):
    """near_duplicate_threshold is not above 0 and at most 1."""


class DiversityOutOfRange(RequestError):
    """Diversity is not in [0, 1]."""


class InvalidGroupBy(RequestError):
    """group_by is not a field, or one that no item has."""


class MinProbabilityOutOfRange(RequestError):
    """min_probability is not in [0, 1]."""


class ScoreKindUnknown(RequestError):
    """score_kind is a number that has no meaning here."""


class ModelNotCalibrated(RequestError):
    """Probabilities are asked for, and the model of the index has no calibration."""


class BatchSizeOutOfRange(RequestError):
    """A batch holds no items, or more than one call may."""


class WaitForUnknown(RequestError):
    """wait_for is a number that has no meaning here."""


class QueryCountOutOfRange(RequestError):
    """A batch holds no queries, or they or their hits are more than one call may have."""


class InvalidRequestId(RequestError):
    """A request id is too long, or has characters that are not printable ASCII."""


class RefusedBefore(RequestError):
    """An item could be taken by now, but its request is the repetition of one in which it was refused."""


class PageSizeOutOfRange(RequestError):
    """page_size is negative."""


class InvalidPageToken(RequestError):
    """A page token is not one that was given out for the same arguments."""


class IndexNameInvalid(RequestError):
    """A name can't be that of an index."""


class IndexExists(RequestError):
    """There is an index of that name already."""


class VersionNotFound(RequestError):
    """The index has no version of that number."""


class VersionInUse(RequestError):
    """The version is active, or what a rollback goes back to."""


class NothingToRollBack(RequestError):
    """No version was active before the present one, or it was deleted."""


class StaleEtag(RequestError):
    """The index has changed since the caller looked at it."""


class BuildInProgress(RequestError):
    """A version of the index is being built already."""


class LearningInProgress(RequestError):
    """A model is being trained in the store already."""


class ModelNotFound(RequestError):
    """The store has no model of that id."""


class DefaultRecallOutOfRange(RequestError):
    """target_recall of a version to build is not above 0 and at most 1."""


class MinRecallOutOfRange(RequestError):
    """min_recall is not in [0, 1]."""


class InvalidLabels(RequestError):
    """Labels are missing, come in more than one form, or have an empty field."""


class InvalidLearning(RequestError):
    """A recipe, a method or a number of epochs is not one that there is."""


class BudgetOutOfRange(RequestError):
    """The budget is below 1."""


class InvalidPath(RequestError):
    """A path is empty or not absolute."""


class PathNotAllowed(RequestError):
    """A path is in none of the folders that requests may use."""


class PathNotFound(RequestError):
    """There is nothing at a path that was to be read."""


class PathExists(RequestError):
    """There is something already at a path that was to be made."""


class OperationFailed(RequestError):
    """The process of an operation ended without saying why."""


class TooManyOperations(RequestError):
    """As many operations are at work as the server starts at a time."""


class Overloaded(RequestError):
    """The server has as many requests in progress as it lets in."""


class Draining(RequestError):
    """The server is shutting down and lets no request in."""
