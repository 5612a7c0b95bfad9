"""The command `archlab`. Nothing that `--help` needs imports torch: each command imports what it uses when it runs."""

from __future__ import annotations

import errno
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments import config, options
from experiments.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status.

    0 every cell ended, 1 some failed (or the doctor found something required broken, or a published behaviour does
    not hold), 2 the user's mistake, told in one sentence on stderr, 130 interrupted.
    """
    try:
        command, given = options.parse(list(sys.argv[1:] if argv is None else argv))
        return COMMANDS[command](given)
    except UserError as error:
        return _refuse(str(error))
    except OSError as error:
        if error.errno == errno.ENOSPC:
            return _refuse("the disk is full: free some space and run it again")
        if error.filename is None:
            raise
        return _refuse(f"cannot use {error.filename}: {error.strerror}; give a place that can be read and written")
    except KeyboardInterrupt:
        return 130


def _refuse(sentence: str) -> int:
    print(f"archlab: {' '.join(sentence.split())}", file=sys.stderr)
    return 2


def compare(given: dict[str, Any]) -> int:
    """Run or continue an experiment; the exit status is its own."""
    from experiments.compare import compare as run

    source, out, jobs = (given.pop(name, None) for name in ("config", "out", "jobs"))
    retry, dry_run = given.pop("retry", ()), given.pop("dry_run", False)
    experiment = config.load(source, given)
    folder = Path(out or Path("runs") / experiment.name)
    return run(experiment, folder, jobs, retry=retry, dry_run=dry_run, console=console())


def report(given: dict[str, Any]) -> int:
    """Write the report of a folder again, from its records alone."""
    from experiments import report as reporter
    from experiments.profile import report as profiles
    from experiments.profile import study as studies

    folder = Path(given["folder"])
    if not (folder / "experiment.yaml").is_file():
        raise UserError(f"{folder} holds no experiment: expected the --out of `archlab compare` or `archlab profile`")
    if studies.is_profile(folder):
        study = studies.read(folder)
        profiles.write(folder, study)
        profiles.show(folder, study, console())
        return 0
    path = reporter.write(folder)
    printer = console()
    printer.print(reporter.table(folder))
    printer.print(str(path), soft_wrap=True, markup=False, highlight=False)
    return 0


def console() -> Console:
    """Where tables go. In a pipe, rich would squeeze them into 80 columns."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else shutil.get_terminal_size((120, 24)).columns)


def tensorboard(given: dict[str, Any]) -> int:
    """Serve a folder's curves until interrupted."""
    from experiments import tensorboard as server

    return server.serve(Path(given["folder"]), given.get("port"))


def show_list(given: dict[str, Any]) -> int:
    """Print what can be compared here."""
    from experiments import inventory

    return inventory.show()


def examine(given: dict[str, Any]) -> int:
    """Print what runs here; 1 where something required is broken."""
    from experiments import doctor

    return doctor.show_health()


def bench(given: dict[str, Any]) -> int:
    """Measure kernels and training steps against their peers and against this machine."""
    from experiments.bench import bench as run

    return run(given.get("only"), given.get("device"), Path(given.get("out") or "runs/bench.json"), console())


def verify(given: dict[str, Any]) -> int:
    """Reproduce published behaviours; 1 where one does not hold."""
    from experiments.verify import verify as run

    return run(given.get("only"), Path(given.get("out") or "runs/verify"), console())


def profile(given: dict[str, Any]) -> int:
    """Run or continue a profile; the exit status is its own."""
    from experiments.profile import config as profiles

    source, out, retry = given.pop("config", None), given.pop("out", None), given.pop("retry", ())
    wanted = profiles.load(source, given)
    # Imported here: it brings torch.
    from experiments.profile.run import run

    return run(wanted, Path(out or Path("runs") / wanted.name), retry, console())


COMMANDS: dict[str, Callable[[dict[str, Any]], int]] = {
    "compare": compare,
    "profile": profile,
    "report": report,
    "tensorboard": tensorboard,
    "bench": bench,
    "verify": verify,
    "list": show_list,
    "doctor": examine,
}


if __name__ == "__main__":
    sys.exit(main())
