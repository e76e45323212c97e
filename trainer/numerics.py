"""How exactly a training computes: the precision of its passes, and whether a GPU gives the same bits each time."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.backends import cudnn
from torch.utils import deterministic as switch

_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


def training_dtype(precision: str, device: torch.device) -> torch.dtype:
    """What the passes of the backbone are computed in, of a recipe's `run.precision`."""
    if precision != "auto":
        chosen = getattr(torch, precision)
        return chosen if isinstance(chosen, torch.dtype) else torch.float32
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def multiply_in_float32() -> None:
    """Let products of float32 matrices on a GPU be float32, as torch has them unless its environment says otherwise.

    NVIDIA's containers say TF32, of whose ten bits nothing is left in |a|² + |b|² - 2ab where a and b are near.
    """
    torch.backends.cuda.matmul.allow_tf32 = False


@contextmanager
def convolving_in(dtype: torch.dtype) -> Iterator[None]:
    """Where passes are float32, a GPU's convolutions are too: by default torch rounds what they multiply to TF32."""
    allowed = cudnn.allow_tf32
    cudnn.allow_tf32 = allowed and dtype != torch.float32
    try:
        yield
    finally:
        cudnn.allow_tf32 = allowed


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Where wanted, only algorithms that give the same bits at each run on the same machine; an error for the rest.

    A CPU has no others for what a training does, as long as the number of threads stays.
    """
    if not wanted:
        yield
        return
    enabled = torch.are_deterministic_algorithms_enabled()
    only_warns = torch.is_deterministic_algorithms_warn_only_enabled()
    flags, workspace = (cudnn.deterministic, cudnn.benchmark), os.environ.get(_WORKSPACE)
    fills = switch.fill_uninitialized_memory  # type: ignore[attr-defined]  # mypy does not see the property
    os.environ[_WORKSPACE] = ":4096:8"  # one of the two with which cuBLAS is deterministic; the other is slower
    torch.use_deterministic_algorithms(True)
    cudnn.deterministic, cudnn.benchmark = True, False
    # Finds programs that read what they have not written, for an eighth of a CPU's time; a training is none of them.
    switch.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        yield
    finally:
        switch.fill_uninitialized_memory = fills  # type: ignore[attr-defined]
        cudnn.deterministic, cudnn.benchmark = flags
        torch.use_deterministic_algorithms(enabled, warn_only=only_warns)
        del os.environ[_WORKSPACE]
        if workspace is not None:
            os.environ[_WORKSPACE] = workspace
