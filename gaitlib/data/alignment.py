"""Crop, scale and centre a raw mask, as OpenGait's ``datasets/pretreatment.py`` does."""

import cv2
import numpy as np

from gaitlib.system.errors import UserError

NO_DATA_SUM = 10_000  # OpenGait: a frame whose pixels sum to no more than this holds no person
SIZE = 64  # rows and columns of a frame


def align_frame(frame: np.ndarray, height: int = SIZE) -> np.ndarray | None:
    """Crop, scale and centre one raw mask.

    1. Remove the rows above the head and below the feet.
    2. Scale the rest (cubic) to ``height``.
    3. Cut a square window around the column that splits the silhouette's mass in half. Zeros fill
       the part of the window outside the image.

    Args:
        frame: ``(h0, w0)`` uint8, 0 background to 255 person.
        height: rows and columns of the result.

    Returns:
        ``(height, height)`` uint8, or None if the frame holds no person (pixel sum up to 10000).

    Raises:
        UserError: the frame is not two-dimensional uint8.
    """
    if frame.ndim != 2 or frame.dtype != np.uint8:
        raise UserError(
            f"a frame is (h, w) uint8, got {frame.shape} {frame.dtype}; read it as a grey image"
        )
    if not frame.size or cv2.sumElems(frame)[0] <= NO_DATA_SUM:
        return None
    rows = frame.any(axis=1).nonzero()[0]
    body = frame[rows[0] : rows[-1] + 1]
    width = max(1, int(height * body.shape[1] / body.shape[0]))
    body = cv2.resize(body, (width, height), interpolation=cv2.INTER_CUBIC)
    mass = body.sum(axis=0).cumsum()
    if not mass[-1]:
        return None  # scaling lost all of the silhouette: it was too thin
    left = int(np.argmax(mass > mass[-1] / 2)) - height // 2
    aligned = np.zeros((height, height), np.uint8)
    first, last = max(left, 0), min(left + height, width)
    aligned[:, first - left : last - left] = body[:, first:last]
    return aligned
