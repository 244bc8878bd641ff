"""Camera noise: the errors of background subtraction, drawn from a seed with a given strength.

The edge moves by about a pixel. Each sequence is segmented a little too wide or too narrow. Now and
then a hole opens or a piece is missing for some frames. The result is always one connected person.
"""

from functools import cache

import cv2
import numpy as np

MARGIN = 3  # pixels around the person
TEXTURE = 256  # side in pixels; the texture repeats, so frames may be larger
AMPLITUDE = 24.0  # SD of the edge's threshold in grey levels, at strength 1


def add_camera_noise(frames: np.ndarray, rng: np.random.Generator, strength: float) -> np.ndarray:
    """Return noisy copies of one clip's masks.

    Args:
        frames: ``(T, h, w)`` uint8, 0 or 255.
        rng: the clip's random generator.
        strength: 0 keeps the frames clean, 1 is mild noise, 2 is rough.

    Returns:
        ``(T, h, w)`` uint8, 0 or 255: one connected person per frame.
    """
    if strength <= 0:
        return frames.copy()
    texture = _texture()
    bias = 9.0 * strength * np.clip(rng.standard_normal(), -2, 2)
    holes = _draw_holes(len(frames), rng, strength)
    shifts = rng.integers(0, TEXTURE, (len(frames), 2))
    noisy = np.zeros_like(frames)
    for t, frame in enumerate(frames):
        x, y, w, h = cv2.boundingRect(frame)
        box = np.s_[
            max(y - MARGIN, 0) : y + h + MARGIN,
            max(x - MARGIN, 0) : x + w + MARGIN,
        ]
        soft = cv2.GaussianBlur(frame[box], (5, 5), 1.2)
        r, c = shifts[t] % (np.array(texture.shape) - soft.shape)
        wander = texture[r : r + soft.shape[0], c : c + soft.shape[1]]
        mask = (soft > 127.5 + bias + AMPLITUDE * strength * wander).view(np.uint8)
        for cx, cy, rx, ry in holes[t]:
            middle = (int(MARGIN + cx * w), int(MARGIN + cy * h))
            cv2.ellipse(mask, middle, (int(rx * h) + 1, int(ry * h) + 1), 0, 0, 360, 0, -1)
        noisy[t][box] = _largest_part(mask)
    return noisy


def _draw_holes(
    frames: int, rng: np.random.Generator, strength: float
) -> list[list[tuple[float, float, float, float]]]:
    """Return the ellipses to clear in each frame: (x, y, x radius, y radius).

    The centre is a share of the bounding box, the radii are shares of its height.
    """
    holes: list[list[tuple[float, float, float, float]]] = [[] for _ in range(frames)]
    if rng.random() < min(1.0, 0.20 * strength):  # for some frames cloth looks like the background
        first = int(rng.integers(frames))
        last = first + int(rng.integers(3, 10))
        place = (rng.uniform(0.1, 0.9), rng.uniform(0.15, 0.9))
        size = (rng.uniform(0.012, 0.04), rng.uniform(0.015, 0.06))
        for t in range(first, min(last, frames)):
            drift = rng.normal(0, 0.02, 2)
            holes[t].append((place[0] + drift[0], place[1] + drift[1], *size))
    for t in np.flatnonzero(rng.random(frames) < 0.04 * strength):
        holes[t].append(
            (rng.uniform(0.2, 0.8), rng.uniform(0.1, 0.95), 0.015, rng.uniform(0.01, 0.03))
        )
    return holes


def _largest_part(mask: np.ndarray) -> np.ndarray:
    """Return the largest connected part of a 0/1 mask as 0/255."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(
        mask, connectivity=8, ltype=cv2.CV_16U
    )
    if count <= 2:
        return mask * np.uint8(255)
    kept = 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))
    return (labels == kept).view(np.uint8) * np.uint8(255)


@cache
def _texture() -> np.ndarray:
    """Return the same smooth noise on every call.

    It is float32 ``(2 * TEXTURE, 2 * TEXTURE)``, of unit variance.
    """
    rng = np.random.default_rng(20060820)
    tile = rng.standard_normal((TEXTURE, TEXTURE)).astype(np.float32)
    fine = cv2.GaussianBlur(tile, (0, 0), 1.0)
    coarse = cv2.GaussianBlur(tile[::-1], (0, 0), 2.5)
    mixed = fine / fine.std() + coarse / coarse.std()
    return np.tile(mixed / mixed.std(), (2, 2))
