"""``python -m walkers DST`` draws the data set without the rest of gaitlib's command line."""

import logging
import sys

import typer

from gaitlib.system.processes import WorkerError
from walkers.command import walkers_command


def main() -> None:
    """Run the command; report an error that a user can fix in one line, with exit status 2."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(walkers_command)
    try:
        app()
    except (WorkerError, OSError, ValueError) as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
