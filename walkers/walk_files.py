"""Files of one walk: draw it, align it and write it such that no reader sees half a file."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from gaitlib.data.pretreat import align_frame
from gaitlib.data.sequence_file import write_sequence
from gaitlib.system.files import replacing
from walkers.scene import draw_walk, noisy_view


def sequence_path(root: Path, raw: bool, subject: int, type: str, view: str) -> Path:
    """Return the file that is written last: if it exists, the sequence is complete."""
    folder = root / f"{subject:03d}" / type / view
    return folder / (f"{subject:03d}-{type}-{view}-001.png" if raw else f"{view}.pkl")


def write_walk(root: Path, spec: dict, subject: int, type: str, views: Sequence[str]) -> None:
    """Draw one walk and write its sequences, one per view.

    Args:
        root: folder of the data set.
        spec: from ``manifest.data_spec``.
        subject: number, from 1.
        type: as in ``TYPES``.
        views: as in ``VIEWS``.
    """
    walk = draw_walk(subject, type, spec["seed"], tuple(spec["frames"]))
    for view in views:
        frames = noisy_view(walk, subject, type, view, spec["seed"], spec["noise"])
        path = sequence_path(root, spec["raw"], subject, type, view)
        if spec["raw"]:
            for i in reversed(range(len(frames))):  # last the first: it marks the end
                name = f"{subject:03d}-{type}-{view}-{i + 1:03d}.png"
                with replacing(path.with_name(name)) as part:
                    part.write_bytes(cv2.imencode(".png", frames[i])[1].tobytes())
        else:
            aligned = np.stack([a for f in frames if (a := align_frame(f)) is not None])
            write_sequence(path, aligned)
