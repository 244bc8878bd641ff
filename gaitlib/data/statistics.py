"""What a set of silhouettes looks like in numbers: energy images, filled area, width, inventory."""

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
    order = {"NM": 0, "BG": 1, "CL": 2}
    groups = sorted(
        table.groupby([condition, "view"]).groups.items(), key=lambda g: (order[g[0][0]], g[0][1])
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


def inventory(parts: dict[str, SilhouetteDataset]) -> pd.DataFrame:
    """Count a data set's parts: a row each, how much is there, missing, unreadable."""
    return pd.DataFrame(
        [
            {
                "split": name,
                "subjects": part.table["subject"].nunique(),
                "sequences": len(part),
                "frames": int(part.table["frames"].sum()),
                "missing": len(missing_sequences(part.table)),
                "unreadable": len(part.problems),
            }
            for name, part in parts.items()
        ]
    )
