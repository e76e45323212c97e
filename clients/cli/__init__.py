"""The `kinsight` command: the front door of all rooms.

`import clients.cli` loads nothing but the standard library; each verb imports the rooms that it needs when it runs,
so that `kinsight --help` is instant and serving never loads torch.
"""

import sys


def main() -> None:
    """Run the command with the arguments of this process, and exit with its code."""
    try:
        from clients.cli.command import kinsight
    except KeyboardInterrupt:  # while the verbs load, which takes a second on a machine that is busy
        print("interrupted: nothing was begun", file=sys.stderr)
        sys.exit(130)
    except ModuleNotFoundError as error:
        if error.name not in ("click", "rich"):
            raise
        sys.exit(f"error: the kinsight command needs {error.name}; install it with: pip install 'kinsight[cli]'")
    kinsight(prog_name="kinsight")
