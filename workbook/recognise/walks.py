"""Walks from whatever holds them: masks in files, CASIA-B pickles, one pickle, or a video."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from gaitlib.data.casia_b import SilhouetteDataset, index_tree, read_sequence
from gaitlib.system.errors import UserError
from workbook.pretreat.mask_options import NOTHING_TOLD, MaskOptions
from workbook.pretreat.mask_set import read_walks
from workbook.recognise.background import VIDEOS, silhouettes_of_video
from workbook.recognise.private_files import COLUMNS, Embeddings, is_embeddings, read_embeddings
from workbook.recognise.recogniser import Recogniser

LeftOut = list[tuple[str, str]]  # path or source of what cannot be used, and why


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


def find_walks(src: Path, size: int, masks: MaskOptions) -> tuple[list[Walk], LeftOut]:
    """Read the walks of a source.

    Args:
        src: a video; a pickle of one sequence; a folder of such pickles,
            ``<subject>/<type>/<view>/*.pkl``; or masks, see
            `workbook.pretreat.pretreat.pretreat_tree`.
        size: rows (and columns, before the cut) of a frame.
        masks: what is told of masks; pickles are then masks too.

    Raises:
        FileNotFoundError: there is no walk in it.
        UserError: it cannot be read, or the masks do not say how.
    """
    if src.suffix.lower() in VIDEOS and src.is_file():
        frames = silhouettes_of_video(src, size)
        return [Walk(src.stem, "video", "default", str(src), frames)], []
    if masks == NOTHING_TOLD and src.suffix == ".pkl":
        return [Walk(src.stem, "00", "default", str(src), read_sequence(src))], []
    if masks == NOTHING_TOLD and any(src.glob("*/*/*/*.pkl")):
        table = index_tree(src)
        bad = table["problem"] != ""
        walks = [
            Walk(row.subject, row.type, row.view, row.path, read_sequence(row.path))
            for row in table[~bad].itertuples()
        ]
        left_out = list(table.loc[bad, ["path", "problem"]].itertuples(index=False, name=None))
    else:
        found, left_out = read_walks(src, size, masks)
        walks = [Walk(*key, str(src), frames) for key, frames in sorted(found.items())]
    if not walks:
        reasons = f"; the first reason is {left_out[0][1]}" if left_out else ""
        raise FileNotFoundError(f"{src} holds no walk that can be used{reasons}")
    return walks, left_out


def embed_walks(recogniser: Recogniser, walks: Sequence[Walk]) -> tuple[Embeddings, LeftOut]:
    """Embed walks, at least one, and leave out those that the recogniser refuses.

    Raises:
        UserError: none can be embedded; the message is the first reason.
    """
    rows, features, left_out = [], [], []
    for walk in walks:
        try:
            features.append(recogniser.embed(walk.frames))
            rows.append((walk.subject, walk.type, walk.view, len(walk.frames), walk.source))
        except ValueError as error:
            left_out.append((walk.source, str(error)))
    if not rows:
        source, reason = left_out[0]
        raise UserError(f"no walk can be embedded; {source}: {reason}")
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    return Embeddings(table, torch.stack(features), recogniser.fingerprint), left_out


def embed_sources(
    sources: Sequence[Path], network: Path | None, masks: MaskOptions, left_out: LeftOut
) -> Embeddings:
    """Embed some sources, or read their embeddings; return them as one.

    Args:
        sources: see `find_walks`; or files of embeddings.
        network: its file; None if all sources are files of embeddings.
        masks: what is told of masks.
        left_out: receives what cannot be used.

    Raises:
        OSError, ValueError: none of the sources can be used; one is no file of embeddings, and no
            network was given; or two files are of different networks.
    """
    recogniser = None if network is None else Recogniser(network)
    raw = [source for source in sources if source.exists() and not is_embeddings(source)]
    if recogniser is None and raw:
        raise UserError(f"{raw[0]} has to be embedded first: add --network FILE")
    found = []
    for number, source in enumerate(sources, 1):
        try:
            if source in raw:
                walks, bad = find_walks(source, recogniser.frame_size[0], masks)
                embeddings, refused = embed_walks(recogniser, walks)
                left_out += [*bad, *refused]
            elif source.exists():
                embeddings = read_embeddings(source)
            else:
                raise FileNotFoundError(
                    f"nothing is at {source}: give a video, masks, pickles or embeddings"
                )
            found.append(embeddings)
        except (OSError, ValueError) as error:
            if number == len(sources) and not found:
                raise
            left_out.append((str(source), str(error)))
    networks = {embeddings.network for embeddings in found}
    if len(networks) > 1:
        raise UserError(f"the embeddings are of {len(networks)} networks: embed all with one file")
    table = pd.concat([e.table for e in found], ignore_index=True)
    return Embeddings(table, torch.cat([e.features for e in found]), networks.pop())


def embed_dataset(
    recogniser: Recogniser, dataset: SilhouetteDataset, prefix: str = ""
) -> Embeddings:
    """Embed all sequences of an open data set, one after another.

    Args:
        recogniser: embeds them.
        dataset: its frames are pretreated.
        prefix: of its subjects' names, to tell them from those of another set.
    """
    features = torch.stack([recogniser.embed(dataset.sequence(i)) for i in range(len(dataset))])
    table = dataset.table.rename(columns={"path": "source"})[list(COLUMNS)]
    table["subject"] = prefix + table["subject"]
    return Embeddings(table.reset_index(drop=True), features, recogniser.fingerprint)
