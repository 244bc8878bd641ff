"""Camera noise: the errors of background subtraction, drawn from a seed with a given strength.

A camera tells a person from the wall by grey levels. Each material of a sequence has its contrast
to the wall, which differs from camera to camera. A person's edge moves by about a pixel, low
contrast opens holes and breaks the body into parts, and each sequence is segmented a little too
wide or too narrow. Specks of a few pixels are removed.
"""

from functools import cache

import cv2
import numpy as np

from walkers.dressed_body import MATERIALS

MARGIN = 3  # pixels around the person
TEXTURE = 256  # side in pixels; the texture repeats, so frames may be larger
AMPLITUDE = 24.0  # SD of the edge's threshold in grey levels, at strength 1
WALL = 32.0  # SD over the places of a camera's picture, grey levels, at strength 1
WALL_SCALE = 5  # a wall's stains are so many times larger than the texture
LOW_CONTRAST = {"skin": 0.33, "coat": 0.5}  # share of sequences at strength 1; others have 0.2
SPECK = 14  # pixels: smaller parts are removed


def draw_contrast(rng: np.random.Generator, strength: float) -> dict[str, int]:
    """Return the grey level of each material in one sequence of one camera; 255 is full contrast.

    Args:
        rng: the clip's random generator.
        strength: 0 gives all full contrast, 1 is mild noise, 2 is rough.
    """
    share = np.array([LOW_CONTRAST.get(m, 0.2) for m in MATERIALS])
    low = rng.random(len(MATERIALS)) < share * strength
    level = np.where(low, rng.uniform(160, 220, len(MATERIALS)), 255)
    return dict(zip(MATERIALS, level.astype(int).tolist(), strict=True))


def add_camera_noise(frames: np.ndarray, rng: np.random.Generator, strength: float) -> np.ndarray:
    """Return noisy masks of one clip.

    Args:
        frames: ``(T, h, w)`` uint8: 0, or the contrast of the material there (`draw_contrast`).
        rng: the clip's random generator.
        strength: 0 keeps the frames clean, 1 is mild noise, 2 is rough.

    Returns:
        ``(T, h, w)`` uint8, 0 or 255.
    """
    if strength <= 0:
        return frames.copy()
    texture, wall = _texture(), _wall()
    bias = 9.0 * strength * np.clip(rng.standard_normal(), -2, 2)
    shifts = rng.integers(0, TEXTURE, (len(frames), 2))
    place = rng.integers(0, TEXTURE, 2)
    noisy = np.zeros_like(frames)
    for t, frame in enumerate(frames):
        x, y, w, h = cv2.boundingRect(frame)
        top, left = max(y - MARGIN, 0), max(x - MARGIN, 0)
        box = np.s_[top : y + h + MARGIN, left : x + w + MARGIN]
        soft = cv2.GaussianBlur(frame[box], (5, 5), 1.2)
        rows, columns = soft.shape
        r, c = shifts[t] % (np.array(texture.shape) - soft.shape)
        wander = texture[r : r + rows, c : c + columns]
        r, c = place[0] + top, place[1] + left
        stains = wall[r : r + rows, c : c + columns]
        limit = 127.5 + bias + strength * (AMPLITUDE * wander + WALL * stains)
        noisy[t][box] = _without_specks((soft > limit).view(np.uint8))
    return noisy


def _without_specks(mask: np.ndarray) -> np.ndarray:
    """Return a 0/1 mask as 0/255, without the connected parts smaller than ``SPECK``."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(
        mask, connectivity=8, ltype=cv2.CV_16U
    )
    if count <= 2:
        return mask * np.uint8(255)
    grey = np.where(stats[:, cv2.CC_STAT_AREA] < SPECK, 0, 255).astype(np.uint8)
    grey[0] = 0
    return grey[labels]


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


@cache
def _wall() -> np.ndarray:
    """Return the texture enlarged ``WALL_SCALE`` times, from which every camera's wall is cut."""
    tile = _texture()[:TEXTURE, :TEXTURE]
    side = TEXTURE * WALL_SCALE
    return cv2.resize(tile, (side, side), interpolation=cv2.INTER_CUBIC)
