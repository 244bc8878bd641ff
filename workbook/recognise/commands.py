"""The commands ``gaitlib embed``, ``enroll``, ``identify`` and ``forget``."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import pandas as pd
import torch
import typer

from gaitlib.system.errors import UserError
from workbook.pretreat.pretreat_command import Invert, Layout, Threshold
from workbook.recognise.gallery import Gallery, new_gallery, read_gallery
from workbook.recognise.private_files import (
    COLUMNS,
    Embeddings,
    is_embeddings,
    read_embeddings,
)
from workbook.recognise.recogniser import Recogniser
from workbook.recognise.walks import embed_walks, find_walks

FALSE_ACCEPTS = 0.01

SOURCES = "a video, masks (folders or archives), CASIA-B pickles, or a file of `gaitlib embed`"
Network = Annotated[
    Path | None,
    typer.Option(
        "--network", help="A compressed network's file, .safetensors, .pt or .onnx, to embed with."
    ),
]


def _embeddings(
    sources: Sequence[Path],
    network: Path | None,
    layout: str | None,
    invert: bool | None,
    mask_threshold: int | None,
) -> tuple[Embeddings, int]:
    """Embed or read some sources; return them as one, and how much was left out.

    Raises:
        OSError, ValueError: none of the sources can be used; one is no file of embeddings, and no
            network was given; or two files are of different networks.
    """
    recogniser = None if network is None else Recogniser(network)
    found, left_out = [], []
    for number, source in enumerate(sources, 1):
        stored = is_embeddings(source)
        if recogniser is None and source.exists() and not stored:
            raise UserError(f"{source} has to be embedded first: add --network FILE")
        try:
            if stored:
                found.append(read_embeddings(source))
                continue
            if not source.exists():
                raise FileNotFoundError(f"nothing is at {source}: give {SOURCES}")
            walks, bad = find_walks(source, recogniser.stored_size, layout, invert, mask_threshold)
            embeddings, refused = embed_walks(recogniser, walks)
        except (OSError, ValueError) as error:
            if number == len(sources) and not found:
                _list_left_out(left_out)
                raise
            left_out.append((source, str(error)))
            continue
        found.append(embeddings)
        left_out += [*bad, *refused]
    networks = {embeddings.network for embeddings in found}
    if len(networks) > 1:
        raise UserError(f"the embeddings are of {len(networks)} networks: embed all with one file")
    _list_left_out(left_out)
    table = pd.concat([e.table for e in found], ignore_index=True)
    return Embeddings(table, torch.cat([e.features for e in found]), networks.pop()), len(left_out)


def _list_left_out(left_out: Sequence[tuple[Path | str, str]]) -> None:
    for path, reason in left_out:
        typer.echo(f"left out: {path}: {reason}", err=True)


def embed_command(
    src: Annotated[Path, typer.Argument(help=SOURCES)],
    out: Annotated[Path, typer.Argument(help="OUT.safetensors and OUT.csv are written.")],
    network: Network = None,
    layout: Layout = None,
    invert: Invert = None,
    threshold: Threshold = None,
) -> None:
    """Embed the walks in SRC with a compressed network, into a table of embeddings.

    It ends with status 1 if something was left out.
    """
    embeddings, left_out = _embeddings([src], network, layout, invert, threshold)
    path, rows = embeddings.write(out)
    typer.echo(f"{len(embeddings.table)} walks: {path}, listed in {rows}")
    typer.echo("these tell people apart, as fingerprints do: only you may read the files (0600)")
    if left_out:
        raise typer.Exit(1)


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
    ] = FALSE_ACCEPTS,
    layout: Layout = None,
    invert: Invert = None,
    mask_threshold: Threshold = None,
) -> None:
    """Add people to a gallery, and set beyond which distance a walk is of nobody known.

    It ends with status 1 if something was left out.
    """
    if not src and not held_out:
        raise UserError("nothing to do: give walks to enrol, or --held-out ones")
    told = layout, invert, mask_threshold
    known = read_gallery(gallery) if gallery.exists() else None
    left_out = 0
    if src:
        embeddings, left_out = _embeddings(src, network, *told)
        subjects = embeddings.table["subject"].tolist()
        names = subjects if name is None else [name] * len(subjects)
        known = (known or new_gallery(embeddings.network)).enroll(names, embeddings)
    elif known is None:
        raise FileNotFoundError(f"no gallery at {gallery}: enrol somebody first")
    if held_out:
        strangers, others = _embeddings(held_out, network, *told)
        known, left_out = known.with_threshold(strangers, false_accepts), left_out + others
    known.write(gallery)
    typer.echo(f"{len(set(known.names))} people, {len(known.names)} walks: {gallery} (mode 0600)")
    typer.echo(_threshold_words(known))
    if left_out:
        raise typer.Exit(1)


def _threshold_words(gallery: Gallery) -> str:
    told = gallery.false_accepts
    if gallery.threshold is None or told is None:
        return "no threshold: nobody will be unknown until --held-out walks set one"
    resolution = ""
    if told["asked"] * told["walks"] < 1:
        resolution = f"; {told['walks']} walks are too few to tell {told['asked']:.2%} from 0"
    return (
        f"unknown beyond {gallery.threshold:.4g}: {told['reached']:.2%} of {told['walks']} "
        f"held-out walks get a name, {told['asked']:.2%} may{resolution}"
    )


def identify_command(
    gallery: Annotated[Path, typer.Argument(help="The gallery's file.")],
    src: Annotated[list[Path], typer.Argument(help=f"Each: {SOURCES}.")],
    network: Network = None,
    top: Annotated[int, typer.Option(min=1, help="Names to list for each walk.")] = 3,
    threshold: Annotated[
        float | None, typer.Option(help="Distance beyond which a walk is unknown.")
    ] = None,
    layout: Layout = None,
    invert: Invert = None,
    mask_threshold: Threshold = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say whose each walk in SRC is: the nearest names with their distances, or unknown.

    It ends with status 1 if something was left out.
    """
    known = read_gallery(gallery)
    embeddings, left_out = _embeddings(src, network, layout, invert, mask_threshold)
    found = known.identify(embeddings, threshold)
    walks = embeddings.table[list(COLUMNS)].to_dict("records")
    if as_json:
        rows = [
            walk | {"name": row.name, "distance": row.distance, "nearest": row.nearest[:top]}
            for walk, row in zip(walks, found.itertuples(index=False, name="Found"), strict=True)
        ]
        typer.echo(json.dumps(rows, indent=1))
    else:
        for walk, name, nearest in zip(walks, found["name"], found["nearest"], strict=True):
            listed = ", ".join(f"{who} {apart:.4g}" for who, apart in nearest[:top])
            place = "/".join((walk["subject"], walk["type"], walk["view"]))
            typer.echo(f"{place} ({walk['frames']} frames): {name}   [{listed}]")
        if threshold is None and known.threshold is None:
            typer.echo("no threshold: every walk gets a name; see `gaitlib enroll --held-out`")
    if left_out:
        raise typer.Exit(1)


def forget_command(
    gallery: Annotated[Path, typer.Argument(help="The gallery's file.")],
    name: Annotated[str, typer.Argument(help="Who is removed.")],
) -> None:
    """Remove a person's walks from a gallery's file."""
    known = read_gallery(gallery).forget(name)
    known.write(gallery)
    typer.echo(f"{name} is forgotten; {len(set(known.names))} people are left in {gallery}")
