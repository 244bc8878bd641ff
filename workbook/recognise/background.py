"""Silhouettes from a video of a static camera, by OpenCV's background subtraction.

The background is learned from the frames that show nobody, so the camera has to see the empty scene
for a moment, before the walk or after it. `cv2.BackgroundSubtractorMOG2` (Zivkovic, "Improved
Adaptive Gaussian Mixture Model for Background Subtraction", 2004) then marks what differs, and
shadows, which are dropped.
"""

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from gaitlib.data.alignment import align_frame
from gaitlib.system.errors import UserError

VIDEOS = (".avi", ".mp4", ".mov", ".mkv", ".m4v", ".mpg", ".webm")
ROWS = 480  # taller frames are scaled down to it
MAX_FRAMES = 1500  # a minute at 25 frames per second
MEDIAN_OF = 41  # frames, evenly spaced, that give the first guess of the background
MOVED = 30  # levels by which a pixel of a person differs from that guess
STILL = 0.002  # share of such pixels, at most, in a frame that shows nobody
MIN_EMPTY = 5  # frames that show nobody
MIN_PERSON = 0.004  # share of the frame that a person fills at least
OTHER_PERSON = 0.5  # a second part this large beside the largest is another person
HOLE = 0.02  # of a person's area: smaller holes are closed
MIN_WALK = 5  # frames that show the whole person
ABSOLUTE = 4.0  # standard deviations of a pixel's background beyond which it differs


def silhouettes_of_video(path: Path | str, size: int) -> np.ndarray:
    """Return the walk of the one person in a video.

    Frames in which nobody is seen, or a person who touches the border, are left out.

    Args:
        path: of the video; the camera does not move, and sees the empty scene for a moment.
        size: rows and columns of a frame.

    Returns:
        ``(T, size, size)`` uint8, aligned.

    Raises:
        UserError: it is no video, too long, never shows the empty scene, or shows nobody, more
            than one person, or a person for a moment only; the message has the fix.
    """
    frames = _read(Path(path))
    masks, crowded = [], 0
    for mask in _foreground(frames, path):
        person, others = _largest_part(mask)
        if person is not None:
            crowded += others
            aligned = align_frame(person, size)
            if aligned is not None:
                masks.append(aligned)
    if len(masks) < MIN_WALK:
        raise UserError(
            f"{path}: a whole person is in {len(masks)} of {len(frames)} frames, fewer than "
            f"{MIN_WALK}: film one person who walks past, farther away if the frame cuts them off"
        )
    if crowded > len(masks) / 5:
        raise UserError(
            f"{path}: {crowded} of {len(masks)} frames show a second person or moving thing: film "
            "one person at a time, or segment them with a tracker and give the masks"
        )
    return np.stack(masks)


def _read(path: Path) -> np.ndarray:
    """Return all frames, ``(T, h, w, 3)`` uint8."""
    video = cv2.VideoCapture(str(path))
    frames: list[np.ndarray] = []
    there, frame = video.read()
    while there and len(frames) <= MAX_FRAMES:
        scale = ROWS / frame.shape[0]
        if scale < 1:
            frame = cv2.resize(frame, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        frames.append(frame)
        there, frame = video.read()
    video.release()
    if not frames:
        raise UserError(f"{path} is no video that OpenCV reads: convert it to an .mp4 or .avi")
    if len(frames) > MAX_FRAMES:
        raise UserError(f"{path} has more than {MAX_FRAMES} frames: cut out one walk")
    return np.stack(frames)


def _foreground(frames: np.ndarray, path: Path | str) -> Iterator[np.ndarray]:
    """Yield what is not background in each frame, uint8 ``(h, w)`` of 0 or 255."""
    picks = np.linspace(0, len(frames) - 1, min(MEDIAN_OF, len(frames))).round().astype(int)
    guess = np.median(frames[picks], axis=0).astype(np.uint8)
    empty = [frame for frame in frames if _moved(frame, guess) < STILL]
    if len(empty) < MIN_EMPTY:
        raise UserError(
            f"{path}: {len(empty)} of {len(frames)} frames show the scene without anybody, fewer "
            f"than {MIN_EMPTY}: keep the camera still, and film the empty scene for a second"
        )
    subtractor = cv2.createBackgroundSubtractorMOG2(
        history=len(empty), varThreshold=ABSOLUTE**2, detectShadows=True
    )
    for frame in empty:
        subtractor.apply(frame)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (3, 3))
    for frame in frames:
        found = subtractor.apply(frame, learningRate=0)
        mask = np.where(found == 255, np.uint8(255), np.uint8(0))  # 127 is a shadow
        mask = cv2.morphologyEx(mask, cv2.MORPH_OPEN, kernel)
        yield cv2.morphologyEx(mask, cv2.MORPH_CLOSE, kernel, iterations=2)


def _moved(frame: np.ndarray, guess: np.ndarray) -> float:
    """Return the share of pixels that differ from the background; single ones are noise."""
    apart = cv2.absdiff(cv2.blur(frame, (3, 3)), cv2.blur(guess, (3, 3))).max(axis=2)
    return float((apart > MOVED).mean())


def _largest_part(mask: np.ndarray) -> tuple[np.ndarray | None, bool]:
    """Return the largest connected part, and whether another is about as large.

    The part is None if it is too small for a person, or touches the border.
    """
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    if count < 2:
        return None, False
    areas = stats[1:, cv2.CC_STAT_AREA]
    largest = 1 + int(areas.argmax())
    x, y, w, h = stats[largest, :4]
    rows, columns = mask.shape
    whole = x > 0 and y > 0 and x + w < columns and y + h < rows
    if not whole or areas[largest - 1] < MIN_PERSON * mask.size:
        return None, False
    others = bool((np.delete(areas, largest - 1) > OTHER_PERSON * areas.max()).any())
    person = labels == largest
    count, holes, sizes, _ = cv2.connectedComponentsWithStats(
        (~person).view(np.uint8), connectivity=4
    )
    small = [i for i in range(1, count) if sizes[i, cv2.CC_STAT_AREA] < HOLE * areas.max()]
    person |= np.isin(holes, small)  # holes in cloth are closed, the gap between legs is not
    return person.view(np.uint8) * np.uint8(255), others
