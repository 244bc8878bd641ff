"""Walks from whatever holds them: masks in files, CASIA-B pickles, one pickle, or a video."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from gaitlib.data.casia_b import SilhouetteDataset, index_tree, read_sequence
from gaitlib.system.errors import UserError
from workbook.pretreat.mask_set import read_walks
from workbook.recognise.background import VIDEOS, silhouettes_of_video
from workbook.recognise.private_files import COLUMNS, Embeddings
from workbook.recognise.recogniser import Recogniser


@dataclass(frozen=True)
class Walk:
    """One walk.

    Attributes:
        subject, type, view: as far as its folders say.
        source: the file or folder it was read from.
        frames: ``(T, H, W)`` uint8, pretreated.
    """

    subject: str
    type: str
    view: str
    source: str
    frames: np.ndarray


def find_walks(
    src: Path | str,
    size: int,
    layout: str | None = None,
    invert: bool | None = None,
    threshold: int | None = None,
) -> tuple[list[Walk], list[tuple[str, str]]]:
    """Read the walks of a source.

    Args:
        src: a video; a pickle of one sequence; a folder of such pickles,
            ``<subject>/<type>/<view>/*.pkl``; or masks, see
            `workbook.pretreat.pretreat.pretreat_tree`.
        size: rows (and columns, before the cut) of a frame.
        layout: of masks, see `workbook.pretreat.mask_set.understand`, like the following.
        invert: whether the background is bright.
        threshold: values above it are the person.

    Returns:
        The walks, and path and reason of what was left out.

    Raises:
        FileNotFoundError: there is nothing at ``src``, or no walk in it.
        UserError: it cannot be read, or the masks do not say how.
    """
    src = Path(src)
    if not src.exists():
        raise FileNotFoundError(f"no walk at {src}: give masks, pickles or a video")
    told = (layout, invert, threshold)
    if src.suffix.lower() in VIDEOS and src.is_file():
        frames = silhouettes_of_video(src, size)
        return [Walk(src.stem, "video", "default", str(src), frames)], []
    if src.suffix == ".pkl" and told == (None, None, None):
        return [Walk(src.stem, "00", "default", str(src), read_sequence(src))], []
    if src.is_dir() and told == (None, None, None) and _is_tree_of_pickles(src):
        table = index_tree(src)
        left_out = list(table.loc[table["problem"] != "", ["path", "problem"]].itertuples(False))
        walks = [
            Walk(row.subject, row.type, row.view, row.path, read_sequence(row.path))
            for row in table[table["problem"] == ""].itertuples()
        ]
        return walks, [tuple(row) for row in left_out]
    found, left_out = read_walks(src, size, *told)
    walks = [Walk(*key, str(src), frames) for key, frames in sorted(found.items())]
    if not walks:
        reasons = f"; the first reason is {left_out[0][1]}" if left_out else ""
        raise FileNotFoundError(f"{src} holds no walk that can be used{reasons}")
    return walks, left_out


def _is_tree_of_pickles(src: Path) -> bool:
    return next(src.glob("*/*/*/*.pkl"), None) is not None


def embed_walks(
    recogniser: Recogniser, walks: Sequence[Walk]
) -> tuple[Embeddings, list[tuple[str, str]]]:
    """Embed walks, and leave out those that the recogniser refuses.

    Returns:
        The embeddings, and source and reason of what was left out.

    Raises:
        UserError: none can be embedded; the message is the first reason.
    """
    rows, features, left_out = [], [], []
    for walk in walks:
        try:
            features.append(recogniser.embed(walk.frames))
        except ValueError as error:
            left_out.append((walk.source, str(error)))
            continue
        rows.append((walk.subject, walk.type, walk.view, len(walk.frames), walk.source))
    if not rows:
        source, reason = left_out[0] if left_out else ("", "there is none")
        raise UserError(f"no walk can be embedded; {source}: {reason}")
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    return Embeddings(table, torch.stack(features), recogniser.fingerprint), left_out


def embed_dataset(
    recogniser: Recogniser, dataset: SilhouetteDataset, prefix: str = ""
) -> Embeddings:
    """Embed all sequences of an open data set, one after another.

    Args:
        recogniser: embeds them.
        dataset: its frames are pretreated.
        prefix: of its subjects' names, to tell them from those of another set.
    """
    features = recogniser.embed_all(dataset.sequence(i) for i in range(len(dataset)))
    table = dataset.table.rename(columns={"path": "source"})[list(COLUMNS)]
    table["subject"] = prefix + table["subject"]
    return Embeddings(table.reset_index(drop=True), features, recogniser.fingerprint)
