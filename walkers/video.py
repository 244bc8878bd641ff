"""Videos of walkers: frames of a static camera with a textured scene, light that varies, and noise.

They test background subtraction, which the data set's silhouettes leave out.
"""

from pathlib import Path

import cv2
import numpy as np

from gaitlib.system.errors import UserError
from gaitlib.system.files import replacing
from walkers.cameras import SIZE
from walkers.scene import FPS, draw_walk, render

EMPTY = 25  # frames of the empty scene before the walk
SENSOR_NOISE = 4.0  # standard deviation, levels
FLICKER = 1.5  # standard deviation of the whole frame's brightness, levels


def write_video(
    path: Path,
    subject: int,
    type: str,
    view: str,
    seed: int = 0,
    *,
    frames: tuple[int, int] = (16, 20),
    empty: int = EMPTY,
) -> Path:
    """Write one walk as a video: Motion JPEG in an .avi, 320 x 240, 25 frames per second.

    Args:
        path: of the file, ``*.avi``.
        subject: number, from 1.
        type: as in ``walkers.TYPES``.
        view: the camera's angle, as text.
        seed: seed of the data set.
        frames: smallest and largest number of frames of the walk.
        empty: frames of the empty scene before it.

    Raises:
        UserError: the ending is another, the type or the view is unknown, or ``frames`` is
            impossible.
        OSError: the file cannot be written.
    """
    if path.suffix != ".avi":
        raise UserError(f"{path}: end its name with .avi")
    masks = render(draw_walk(subject, type, seed, frames), view)
    rng = np.random.default_rng([seed, subject, int(view), len(masks)])
    scene, clothes = _scene(rng), rng.uniform(20, 235, (2, 3))  # colours of body and legs
    path.parent.mkdir(parents=True, exist_ok=True)
    blank = np.zeros_like(masks[0])
    with replacing(path) as part:
        whole = part.with_name(f"{part.name}.avi")  # OpenCV looks at the ending
        try:
            video = cv2.VideoWriter(str(whole), cv2.VideoWriter.fourcc(*"MJPG"), FPS, SIZE)
            if not video.isOpened():
                raise OSError(f"OpenCV cannot write {path}")
            for mask in [blank] * empty + list(masks):
                video.write(_photograph(scene, mask, clothes, rng))
            video.release()
            whole.replace(part)
        finally:
            whole.unlink(missing_ok=True)
    return path


def _scene(rng: np.random.Generator) -> np.ndarray:
    """Return an empty scene, float32 ``(240, 320, 3)`` of 0 to 255: wall, floor and stains."""
    width, height = SIZE
    scene = np.empty((height, width, 3), np.float32)
    horizon = int(height * 0.55)
    scene[:horizon], scene[horizon:] = rng.uniform(90, 200, 3), rng.uniform(60, 160, 3)
    stains = rng.standard_normal((height, width, 3)).astype(np.float32)
    return np.clip(scene + 60 * cv2.GaussianBlur(stains, (0, 0), 4.0), 0, 255)


def _photograph(
    scene: np.ndarray, mask: np.ndarray, clothes: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Return one frame, uint8 ``(240, 320, 3)``, of a person (0 or 255 in ``mask``) in a scene."""
    cover = cv2.GaussianBlur(mask, (3, 3), 0.7).astype(np.float32)[:, :, None] / 255
    person = np.empty_like(scene)
    rows = np.flatnonzero(mask.any(axis=1))
    waist = (rows[0] + rows[-1]) // 2 if len(rows) else 0
    person[:waist], person[waist:] = clothes
    frame = scene * (1 - cover) + person * cover
    frame += FLICKER * rng.standard_normal() + SENSOR_NOISE * rng.standard_normal(scene.shape)
    return np.clip(frame, 0, 255).astype(np.uint8)
