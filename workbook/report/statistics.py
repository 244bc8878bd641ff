"""Statistics of a set of silhouettes: energy images, filled area, width, inventory."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from gaitlib.data.casia_b import TYPES, SilhouetteDataset, missing_sequences


def energy_image(clip: np.ndarray) -> np.ndarray:
    """Return the gait energy image: the mean silhouette (Han & Bhanu, TPAMI 2006).

    Args:
        clip: uint8 ``(T, H, W)``.

    Returns:
        float32 ``(H, W)``, 0-255.
    """
    return clip.mean(axis=0, dtype=np.float32)


def energy_images(dataset: SilhouetteDataset, subject: str) -> dict[tuple[str, str], np.ndarray]:
    """Return one subject's energy image per ``(condition, view)``, the mean over sequences.

    CASIA-B's conditions are NM, BG and CL; in another data set each type stands for itself.
    """
    table = dataset.table[dataset.table["subject"] == subject]
    condition = table["type"]
    if condition.isin(TYPES).all():
        condition = condition.str[:2].str.upper()
    rows = table.groupby([condition, "view"]).groups
    order = {"NM": 0, "BG": 1, "CL": 2}
    return {
        key: np.mean([energy_image(dataset.sequence(i)) for i in rows[key]], axis=0)
        for key in sorted(rows, key=lambda key: (order.get(key[0], 3), key))
    }


def foreground(dataset: SilhouetteDataset) -> pd.DataFrame:
    """Measure how much of the frame a person fills, one row per sequence.

    Returns:
        Columns type, view, ``filled`` (share of the pixels, grey counted by its level, 0-1) and
        ``width`` (pixels from the first to the last non-empty column, mean over frames).
    """
    rows = []
    for i, kind, view in dataset.table[["type", "view"]].itertuples():
        clip = dataset.sequence(i)
        columns = clip.any(axis=1)  # (T, W)
        first, last = columns.argmax(1), columns.shape[1] - columns[:, ::-1].argmax(1)
        rows.append((kind, view, clip.mean() / 255, np.mean(last - first)))
    return pd.DataFrame(rows, columns=["type", "view", "filled", "width"])


def mean_foreground(shares: pd.DataFrame) -> pd.DataFrame:
    """Return the mean of `foreground` per kind of walk: nm, bg, cl, or what a type starts with."""
    kind = shares["type"].str.split("-").str[0].rename("type")
    means = shares.groupby(kind)[["filled", "width"]].mean()
    known = [name for name in ("nm", "bg", "cl") if name in means.index]
    return means.reindex([*known, *means.index.difference(known)])


def _missing(table: pd.DataFrame) -> pd.DataFrame:
    """List the sequences that CASIA-B has and the table lacks.

    In another data set: those of a type and view that at least half of its subjects have.
    """
    if table["type"].isin(TYPES).all():
        return missing_sequences(table)
    subjects = table["subject"].unique()
    having = table.groupby(["type", "view"])["subject"].nunique()
    pairs = having.index[having >= len(subjects) / 2]
    present = set(table[["subject", "type", "view"]].itertuples(index=False, name=None))
    rows = [(s, *pair) for s in subjects for pair in pairs if (s, *pair) not in present]
    return pd.DataFrame(rows, columns=["subject", "type", "view"], dtype=str)


def report(parts: Mapping[str, SilhouetteDataset], short: int = 5) -> pd.DataFrame:
    """List the problems of all parts, one row per sequence or subject.

    Args:
        parts: name to data set, as ``{"train": ..., "test": ...}``.
        short: list sequences with fewer frames than this; they are used nevertheless.

    Returns:
        Columns split, kind (``missing``, ``short``, ``unreadable`` or ``partition``), subject,
        type, view and problem.
    """
    frames = []
    for name, part in parts.items():
        missing = _missing(part.table).assign(kind="missing", problem="not on disk")
        short_ones = part.table[part.table["frames"] < short]
        counts = short_ones["frames"].astype(str) + " frames"
        short_ones = short_ones.assign(kind="short", problem=counts)
        kinds = np.where(part.problems["type"] == "", "partition", "unreadable")
        others = part.problems.assign(kind=kinds)
        frames += [table.assign(split=name) for table in (missing, short_ones, others)]
    columns = ["split", "kind", "subject", "type", "view", "problem"]
    return pd.concat(frames, ignore_index=True)[columns]


def inventory(parts: Mapping[str, SilhouetteDataset]) -> pd.DataFrame:
    """Count what each part of a data set holds, lacks and cannot read, one row per part."""
    problems = report(parts)
    rows = []
    for name, part in parts.items():
        frames, kinds = part.table["frames"].sum(), problems.loc[problems["split"] == name, "kind"]
        row = {"split": name, "subjects": len(part.subjects), "sequences": len(part)}
        counts = {kind: (kinds == kind).sum() for kind in ("missing", "short", "unreadable")}
        rows.append({**row, "frames": frames, **counts})
    return pd.DataFrame(rows)
