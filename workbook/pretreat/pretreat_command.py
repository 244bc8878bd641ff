"""The command ``gaitlib pretreat``."""

from pathlib import Path
from typing import Annotated

import typer

from gaitlib.data.alignment import SIZE
from workbook.pretreat.mask_layouts import LAYOUTS
from workbook.pretreat.mask_set import understand, write_preview
from workbook.pretreat.pretreat import SHORT, SKIPPED, pretreat_tree

PREVIEW = "pretreat_preview.png"

Layout = Annotated[
    str | None,
    typer.Option(help=f"{', '.join(LAYOUTS)}; by default as the folders look."),
]
Invert = Annotated[
    bool | None,
    typer.Option("--invert/--no-invert", help="Whether the background is bright; else it is seen."),
]
Threshold = Annotated[
    int | None,
    typer.Option(help="Values above it, of the files' own, are the person; else it is seen."),
]


def pretreat_command(
    src: Path,
    dst: Path,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes; by default one per core.")
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Make existing sequences again.")] = False,
    size: Annotated[int, typer.Option(help="Rows and columns of a frame: 64 or 128.")] = SIZE,
    layout: Layout = None,
    invert: Invert = None,
    threshold: Threshold = None,
    preview: Annotated[
        bool, typer.Option(help=f"Only write a contact sheet, DST/{PREVIEW}, and stop.")
    ] = False,
) -> None:
    """Convert raw masks in SRC (folders or archives of images) to pickles in DST.

    It ends with status 1 if a whole subject was lost.
    """
    told = {"layout": layout, "invert": invert, "threshold": threshold}
    if preview:
        understood = understand(src, **told, without=dst)
        typer.echo(str(understood))
        sheet = write_preview(understood, dst / PREVIEW, size)
        typer.echo(f"as stored, and below as understood: {sheet}")
        return
    report = pretreat_tree(
        src, dst, workers=workers, overwrite=overwrite, progress=True, size=size, **told
    )
    typer.echo(str(report))
    for name, table in ((SKIPPED, report.skipped), (SHORT, report.short)):
        if len(table):
            typer.echo(f"listed in {dst / name}")
    if report.lost:
        raise typer.Exit(1)
