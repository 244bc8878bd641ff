"""The command ``gaitlib pretreat``."""

from pathlib import Path
from typing import Annotated

import typer

from workbook.pretreat.mask_options import NOTHING_TOLD, MaskOptions, with_mask_options

PREVIEW = "pretreat_preview.png"


@with_mask_options()
def pretreat_command(
    src: Path,
    dst: Path,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes; by default one per core.")
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Make existing sequences again.")] = False,
    size: Annotated[
        int | None, typer.Option(help="Rows and columns of a frame: 64, the default, or 128.")
    ] = None,
    masks: MaskOptions = NOTHING_TOLD,
    preview: Annotated[
        bool, typer.Option(help=f"Only write a contact sheet, DST/{PREVIEW}, and stop.")
    ] = False,
) -> None:
    """Convert raw masks in SRC (folders or archives of images) to pickles in DST.

    It ends with status 1 if a whole subject was lost.
    """
    # imported here, so that `gaitlib --help` is quick
    from gaitlib.data.alignment import SIZE
    from workbook.pretreat.mask_set import understand, write_preview
    from workbook.pretreat.pretreat import SHORT, SKIPPED, pretreat_tree

    size = SIZE if size is None else size
    if preview:
        understood = understand(src, masks, without=dst)
        typer.echo(understood.words)
        sheet = write_preview(understood, dst / PREVIEW, size)
        typer.echo(f"as stored, and below as understood: {sheet}")
        return
    report = pretreat_tree(
        src, dst, workers=workers, overwrite=overwrite, progress=True, size=size, masks=masks
    )
    typer.echo(str(report))
    for name, table in ((SKIPPED, report.skipped), (SHORT, report.short)):
        if len(table):
            typer.echo(f"listed in {dst / name}")
    if report.lost:
        raise typer.Exit(1)
