"""Memory: what a training step frees stays with the process, and passes without gradients are taken in parts."""

import ctypes
import platform

import torch

# glibc/malloc.h: parameters of mallopt.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
_NEVER = 2**31 - 1  # mallopt takes an int: the heap is trimmed only when 2 GiB at its top are free
_PAD_BYTES = 2**28  # the heap grows in steps of 256 MiB, not of 128 KiB

# Of the images of one pass without gradients: more of them take more memory, and make a CPU no faster an image; a GPU
# is to have work until the next pass is launched.
_PIXELS_AT_ONCE = {"cpu": 16 * 224**2, "cuda": 256 * 224**2}


def images_at_once(size: int, device: torch.device) -> int:
    """How many images of size × size pixels go through a network together where none is learned from."""
    return max(1, _PIXELS_AT_ONCE[device.type] // size**2)


def keep_freed_memory() -> bool:
    """Tell glibc to keep freed tensors instead of returning them to the system; call before the first big one.

    By default every tensor above 32 MiB is a fresh mapping whose pages the kernel zeroes one by one, each step
    anew: 272,000 page faults in a CPU step of tf_efficientnet_lite0 (64 images of 112 px, forward and backward).
    With these settings there are none, and one thread takes 0.72 of the CPU time
    (python tests/benchmarks/bench_memory.py). The price is that the process keeps its peak memory until it ends.

    Returns:
        Whether the settings were taken; False where the C library is not glibc.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # Large tensors from the heap instead of mappings of their own; a threshold would stop at 32 MiB.
    settings = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, _NEVER), (_TOP_PAD, _PAD_BYTES))
    return all(mallopt(parameter, value) == 1 for parameter, value in settings)
