"""The command that draws walkers, once for ``python -m walkers`` and for ``gaitlib walkers``."""

from pathlib import Path
from typing import Annotated

import typer

from walkers.walker_dataset import make_walkers


def walkers_command(
    dst: Path,
    subjects: int = 34,
    train: int = 24,
    frames: tuple[int, int] = (16, 20),
    seed: int = 0,
    noise: float = 1.0,
    workers: Annotated[int | None, typer.Option(help="Processes; all cores if left out.")] = None,
    raw: Annotated[bool, typer.Option(help="Write PNG frames instead of pickles.")] = False,
) -> None:
    """Make the embedded data set: procedural walkers as a CASIA-B-pkl tree in DST."""
    make_walkers(
        dst,
        subjects=subjects,
        train=train,
        frames=frames,
        seed=seed,
        noise=noise,
        workers=workers,
        raw=raw,
        progress=True,
    )
    typer.echo(f"{subjects} walkers, {train} to train on: {dst}")
