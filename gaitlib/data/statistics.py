"""What a set of silhouettes looks like in numbers: energy images, filled area, width, inventory."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from gaitlib.data.casia_b import SilhouetteDataset, missing_sequences


def energy_image(clip: np.ndarray) -> np.ndarray:
    """Return the gait energy image: the mean silhouette (Han & Bhanu, TPAMI 2006).

    Args:
        clip: uint8 ``(T, H, W)``.

    Returns:
        float32 ``(H, W)``, 0-255.
    """
    return clip.mean(axis=0, dtype=np.float32)


def energy_images(dataset: SilhouetteDataset, subject: str) -> dict[tuple[str, str], np.ndarray]:
    """Return one subject's energy images, mean over sequences: ``(condition, view)`` to image."""
    table = dataset.table[dataset.table["subject"] == subject]
    condition = table["type"].str[:2].str.upper()
    order = ["NM", "BG", "CL"]
    groups = sorted(
        table.groupby([condition, "view"]).groups.items(),
        key=lambda g: (order.index(g[0][0]) if g[0][0] in order else len(order), *g[0]),
    )
    return {
        key: np.mean([energy_image(dataset.sequence(i)) for i in rows], axis=0)
        for key, rows in groups
    }


def foreground(dataset: SilhouetteDataset) -> pd.DataFrame:
    """Measure how much of the frame a person fills, one row a sequence.

    Returns:
        Columns type, view, ``filled`` (share of the pixels, grey counted by its level, 0-1) and
        ``width`` (pixels between the first and last non-empty column, mean over frames).
    """
    rows = []
    for i, kind, view in dataset.table[["type", "view"]].itertuples():
        clip = dataset.sequence(i)
        columns = clip.any(axis=1)  # (T, W)
        first, last = columns.argmax(1), columns.shape[1] - columns[:, ::-1].argmax(1)
        rows.append((kind, view, clip.mean() / 255, np.mean(last - first)))
    return pd.DataFrame(rows, columns=["type", "view", "filled", "width"])


def report(parts: Mapping[str, SilhouetteDataset], short: int = 5) -> pd.DataFrame:
    """List all that is not as it should be, in all parts, a row a sequence or subject.

    Args:
        parts: name to data set, as ``{"train": ..., "test": ...}``.
        short: sequences with fewer frames are listed; they are used all the same.

    Returns:
        Columns split, kind (``missing``, ``short``, ``unreadable`` or ``partition``), subject,
        type, view and problem.
    """
    frames = []
    for name, part in parts.items():
        missing = missing_sequences(part.table).assign(kind="missing", problem="not on disk")
        few = part.table[part.table["frames"] < short]
        few = few.assign(kind="short", problem=few["frames"].astype(str) + " frames")
        kinds = np.where(part.problems["type"] == "", "partition", "unreadable")
        frames += [
            table.assign(split=name) for table in (missing, few, part.problems.assign(kind=kinds))
        ]
    columns = ["split", "kind", "subject", "type", "view", "problem"]
    return pd.concat(frames, ignore_index=True)[columns]


def inventory(parts: Mapping[str, SilhouetteDataset]) -> pd.DataFrame:
    """Count a data set's parts: a row each, how much is there, missing, unreadable."""
    problems = report(parts)
    return pd.DataFrame(
        [
            {
                "split": name,
                "subjects": len(part.subjects),
                "sequences": len(part),
                "frames": int(part.table["frames"].sum()),
                **{
                    kind: int(((problems["split"] == name) & (problems["kind"] == kind)).sum())
                    for kind in ("missing", "short", "unreadable")
                },
            }
            for name, part in parts.items()
        ]
    )
