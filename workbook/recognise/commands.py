"""The commands ``gaitlib embed``, ``enroll``, ``identify`` and ``forget``.

Each imports what it calls when it is called, so that `gaitlib --help` is quick.
"""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from gaitlib.system.errors import UserError
from workbook.pretreat.mask_options import NOTHING_TOLD, MaskOptions, with_mask_options

SOURCES = "a video, masks (folders or archives), CASIA-B pickles, or a file of `gaitlib embed`"
GalleryFile = Annotated[Path, typer.Argument(help="The gallery's file.")]
Network = Annotated[
    Path | None,
    typer.Option(
        "--network", help="A compressed network's file, .safetensors, .pt or .onnx, to embed with."
    ),
]


@contextlib.contextmanager
def _left_out() -> Iterator[list[tuple[str, str]]]:
    """Yield a list for the path and reason of what is left out.

    At the end it is printed, and the command ends with status 1 if there is any.
    """
    left_out: list[tuple[str, str]] = []
    try:
        yield left_out
    finally:
        for path, reason in left_out:
            typer.echo(f"left out: {path}: {reason}", err=True)
    if left_out:
        raise typer.Exit(1)


@with_mask_options()
def embed_command(
    src: Annotated[Path, typer.Argument(help=SOURCES)],
    out: Annotated[Path, typer.Argument(help="OUT.safetensors and OUT.csv are written.")],
    network: Network = None,
    masks: MaskOptions = NOTHING_TOLD,
) -> None:
    """Embed the walks in SRC with a compressed network, into a table of embeddings.

    It ends with status 1 if something was left out.
    """
    from workbook.recognise.walks import embed_sources

    with _left_out() as left_out:
        embeddings = embed_sources([src], network, masks, left_out)
        path, rows = embeddings.write(out)
        typer.echo(f"{len(embeddings.table)} walks: {path}, listed in {rows}")
        typer.echo(
            "these tell people apart, as fingerprints do: only you may read the files (0600)"
        )


@with_mask_options(threshold="mask_threshold")
def enroll_command(
    gallery: Annotated[Path, typer.Argument(help="The gallery's file; made if it is missing.")],
    src: Annotated[list[Path] | None, typer.Argument(help=f"Each: {SOURCES}.")] = None,
    network: Network = None,
    name: Annotated[
        str | None,
        typer.Option(help="The person of all walks in SRC; by default each one's subject."),
    ] = None,
    held_out: Annotated[
        list[Path] | None,
        typer.Option(help="Walks of people who are not enrolled, to set the threshold; repeat it."),
    ] = None,
    false_accepts: Annotated[
        float, typer.Option(help="Share of the held-out walks that may get a name.")
    ] = 0.01,
    masks: MaskOptions = NOTHING_TOLD,
) -> None:
    """Add people to a gallery, and set beyond which distance a walk is of nobody known.

    It ends with status 1 if something was left out.
    """
    from workbook.recognise.gallery import new_gallery, read_gallery
    from workbook.recognise.walks import embed_sources

    if not src and not held_out:
        raise UserError("nothing to do: give walks to enrol, or --held-out ones")
    known = read_gallery(gallery) if gallery.exists() or not src else None
    with _left_out() as left_out:
        if src:
            embeddings = embed_sources(src, network, masks, left_out)
            subjects = embeddings.table["subject"].tolist()
            names = subjects if name is None else [name] * len(subjects)
            known = (known or new_gallery(embeddings.network)).enroll(names, embeddings)
        if held_out:
            strangers = embed_sources(held_out, network, masks, left_out)
            known = known.with_threshold(strangers, false_accepts)
        known.write(gallery)
        people = len(set(known.names))
        typer.echo(f"{people} people, {len(known.names)} walks: {gallery} (mode 0600)")
        typer.echo(known.threshold_words())


@with_mask_options(threshold="mask_threshold")
def identify_command(
    gallery: GalleryFile,
    src: Annotated[list[Path], typer.Argument(help=f"Each: {SOURCES}.")],
    network: Network = None,
    top: Annotated[int, typer.Option(min=1, help="Names to list for each walk.")] = 3,
    threshold: Annotated[
        float | None, typer.Option(help="Distance beyond which a walk is unknown.")
    ] = None,
    masks: MaskOptions = NOTHING_TOLD,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say whose each walk in SRC is: the nearest names with their distances, or unknown.

    It ends with status 1 if something was left out.
    """
    from workbook.recognise.gallery import read_gallery
    from workbook.recognise.walks import embed_sources

    known = read_gallery(gallery)
    with _left_out() as left_out:
        embeddings = embed_sources(src, network, masks, left_out)
        found = known.identify(embeddings, threshold)
        walks = embeddings.table.join(found).to_dict("records")
        if as_json:
            walks = [walk | {"nearest": walk["nearest"][:top]} for walk in walks]
            typer.echo(json.dumps(walks, indent=1))
            return
        for walk in walks:
            listed = ", ".join(f"{who} {apart:.4g}" for who, apart in walk["nearest"][:top])
            place = f"{walk['subject']}/{walk['type']}/{walk['view']} ({walk['frames']} frames)"
            typer.echo(f"{place}: {walk['name']}   [{listed}]")
        if threshold is None and known.threshold is None:
            typer.echo("no threshold: every walk gets a name; see `gaitlib enroll --held-out`")


def forget_command(
    gallery: GalleryFile,
    name: Annotated[str, typer.Argument(help="Who is removed.")],
) -> None:
    """Remove a person's walks from a gallery's file."""
    from workbook.recognise.gallery import read_gallery

    known = read_gallery(gallery).forget(name)
    known.write(gallery)
    typer.echo(f"{name} is forgotten; {len(set(known.names))} people are left in {gallery}")
