"""The command's frame: its verbs, and how an error becomes one line and an exit code."""

from typing import Any, NoReturn

import click

from clients.cli import remote_models, remote_versions
from clients.cli.calibrate import calibrate
from clients.cli.demo import demo
from clients.cli.doctor import doctor
from clients.cli.expected import expected_message
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
            _exit_interrupted(ctx)
        except Exception as error:
            if _came_of_ctrl_c(error):
                _exit_interrupted(ctx)
            message = expected_message(error)
            if message is None or ctx.params["traceback"]:
                raise
            raise Failure(message) from error


def _exit_interrupted(ctx: click.Context) -> NoReturn:
    click.echo("interrupted: nothing is left half-written", err=True)
    ctx.exit(INTERRUPTED)


def _came_of_ctrl_c(error: Exception) -> bool:
    """Whether a library of C that was just loading made an error of its own of Ctrl-C, as ONNX Runtime does."""
    return isinstance(error, ImportError) and isinstance(error.__cause__, KeyboardInterrupt)


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
    remote_versions.versions,
    remote_versions.activate,
    remote_versions.rollback,
    remote_versions.delete_version,
    remote_models.models,
    remote_models.train,
    remote_models.finetune,
    remote_models.suggest,
    remote_models.calibrate,
):
    remote.add_command(remote_verb)
