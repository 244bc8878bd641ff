"""The commands that draw walkers, once for ``python -m walkers`` and for ``gaitlib walkers``.

They import what draws when they run, so that ``gaitlib --help`` need not wait for it.
"""

import json
from pathlib import Path
from typing import Annotated

import typer

from gaitlib.system.errors import UserError

NAMES = "casia-b, oumvlp, casia-e, sustech1k, ccpg, gait3d, grew or hid"  # of layouts


def walkers_command(
    dst: Path,
    layout: Annotated[str, typer.Option(help=NAMES)] = "casia-b",
    subjects: Annotated[
        int | None, typer.Option(help="34 by default, 10 in another layout than casia-b.")
    ] = None,
    train: Annotated[
        int | None, typer.Option(help="24 by default, 6 in another layout than casia-b.")
    ] = None,
    frames: tuple[int, int] = (16, 20),
    frame_step: Annotated[int, typer.Option(help="4 draws whole passes of 3 to 4 seconds.")] = 1,
    style: Annotated[str, typer.Option(help="hall or street.")] = "hall",
    seed: int = 0,
    noise: float = 1.0,
    workers: Annotated[int | None, typer.Option(help="Processes; all cores if left out.")] = None,
    raw: Annotated[bool, typer.Option(help="Write PNG frames instead of pickles.")] = False,
) -> None:
    """Draw procedural walkers in DST, in the layout of CASIA-B-pkl or of another data set."""
    from walkers.manifest import MANIFEST
    from walkers.walker_dataset import make_walkers

    root = make_walkers(
        dst,
        layout=layout,
        subjects=subjects,
        train=train,
        frames=frames,
        frame_step=frame_step,
        style=style,
        seed=seed,
        noise=noise,
        workers=workers,
        raw=raw,
        progress=True,
    )
    spec = json.loads((root / MANIFEST).read_text())
    typer.echo(f"{spec['subjects']} walkers, {spec['train']} to train on: {dst}")


def walker_video_command(
    out: Annotated[Path, typer.Argument(help="The file, OUT.avi.")],
    subject: Annotated[int, typer.Option(min=1, max=999, help="Number of the walker.")] = 1,
    type: Annotated[str, typer.Option(help="nm, bg or cl, and the walk's number.")] = "nm-01",
    view: Annotated[str, typer.Option(help="The camera's angle: 000, 018, ... 180.")] = "090",
    frames: tuple[int, int] = (16, 20),
    empty: Annotated[int, typer.Option(min=0, max=999, help="Frames before the walk.")] = 25,
    seed: int = 0,
) -> None:
    """Film one walker with a static camera: a noisy scene, first empty, then with the walk."""
    from walkers.scene import VIEWS
    from walkers.video import write_video

    if view not in VIEWS:
        raise UserError(f"no camera at view {view!r}; choose from {', '.join(VIEWS)}")
    typer.echo(write_video(out, subject, type, view, seed, frames=frames, empty=empty))
