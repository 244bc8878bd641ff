"""Files of one walk: draw it, align it and write it such that no reader sees half a file."""

import pickle
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from gaitlib.data.alignment import align_frame
from gaitlib.data.sequence_file import write_sequence
from gaitlib.system.files import replacing
from walkers.layouts import Place, layout_of
from walkers.scene import draw_walk, noisy_view
from walkers.styles import STYLES


def sequence_path(root: Path, spec: dict, place: Place) -> Path:
    """Return the file that is written last: if it exists, the sequence is complete."""
    folder = root / place.subject / place.type / place.view
    if spec["raw"]:
        return folder / f"{place.subject}-{place.type}-{place.view}-001.png"
    return folder / layout_of(spec).file(place)


def write_walk(root: Path, spec: dict, person: int, walk: str, places: Sequence[Place]) -> None:
    """Draw one walk and write its sequences, one per camera.

    Args:
        root: folder of the data set.
        spec: from ``manifest.data_spec``.
        person: number, from 1.
        walk: a kind and a number, like "nm-01".
        places: where its sequences go, and the cameras' angles.
    """
    how = tuple(spec["frames"]), spec["frame_step"], spec["style"]
    drawn = draw_walk(person, walk, spec["seed"], *how)
    layout, noise = layout_of(spec), spec["noise"] * STYLES[spec["style"]].noise
    for place in map(Place._make, places):
        angle = f"{place.angle:03d}"
        frames = noisy_view(drawn, person, walk, angle, spec["seed"], noise)
        path = sequence_path(root, spec, place)
        if spec["raw"]:
            for i in reversed(range(len(frames))):  # last the first: it marks the end
                name = f"{place.subject}-{place.type}-{place.view}-{i + 1:03d}.png"
                with replacing(path.with_name(name)) as part:
                    part.write_bytes(cv2.imencode(".png", frames[i])[1].tobytes())
            continue
        found = (align_frame(frame, layout.size) for frame in frames)
        aligned = np.stack([frame for frame in found if frame is not None])
        for name, stand_in in layout.others.items():
            with replacing(path.with_name(name.format(view=place.view))) as part:
                part.write_bytes(pickle.dumps(stand_in(aligned), protocol=4))
        write_sequence(path, aligned)
