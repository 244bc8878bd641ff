"""Scenes: a subject number and a seed become raw frames of a walk in front of eleven cameras.

The person walks along +x, past the middle of a ring of cameras at hip height. As in CASIA-B (Yu,
Tan and Tan 2006), 000 sees the front, 090 the left side, 180 the back. All cameras see the same
walk at the same moments.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from gaitlib.system.errors import UserError
from walkers.body import Body, draw_body
from walkers.camera_noise import add_camera_noise
from walkers.dressed_body import DressedBody
from walkers.gait import Gait, draw_gait, vary_gait
from walkers.motion import Pose, pose_at, walk_cycle
from walkers.outfit import Outfit, draw_outfit, dress, gait_under_load
from walkers.shapes import Camera

TYPES = ("nm-01", "nm-02", "nm-03", "nm-04", "nm-05", "nm-06", "bg-01", "bg-02", "cl-01", "cl-02")
VIEWS = tuple(f"{18 * i:03d}" for i in range(11))
KINDS = ("nm", "bg", "cl")
FPS = 25.0  # frames per second
SIZE = (320, 240)  # width and height of CASIA-B's video, pixels
FOCAL = 232.0  # pixels: a person of 1.7 m at 3.5 m is 113 pixels high
MAX_FRAMES = 120
SUBPIXEL = 4  # fractional bits of drawing coordinates


@dataclass(frozen=True, eq=False)
class Person:
    """One subject: body, gait, hair and clothes."""

    body: Body
    gait: Gait
    outfit: Outfit


@dataclass(frozen=True, eq=False)
class Walk:
    """One sequence for all cameras: T moments, with the middle of the path near the origin.

    Attributes:
        pose: joints and axes at the T moments.
        dressed_body: the person in the outfit of this sequence.
        distance: from the cameras to the origin, metres.
        camera_height: metres.
    """

    pose: Pose
    dressed_body: DressedBody
    distance: float
    camera_height: float


def draw_person(subject: int, seed: int = 0) -> Person:
    """Return the person with a subject number, for a seed of the data set."""
    rng = np.random.default_rng([seed, subject])
    body = draw_body(rng)
    return Person(body, draw_gait(body.sex, rng), draw_outfit(body.sex, rng))


def draw_walk(subject: int, type: str, seed: int = 0, frames: tuple[int, int] = (16, 20)) -> Walk:
    """Return one walk of a subject, with varied gait and clothes, and a random start and length.

    Args:
        subject: number, from 1.
        type: a kind ("nm", "bg", "cl") and a number, like "nm-01".
        seed: seed of the data set.
        frames: smallest and largest number of frames.
    """
    kind, number = _parse_type(type)
    check_frames(frames)
    person = draw_person(subject, seed)
    rng = np.random.default_rng([seed, subject, KINDS.index(kind), number])
    outfit = dress(person.outfit, kind, rng)
    cycle = walk_cycle(person.body, gait_under_load(vary_gait(person.gait, rng), outfit))
    count = int(rng.integers(frames[0], frames[1] + 1))
    start = rng.random()
    phase = start + np.arange(count) / (FPS * cycle.period)
    pose = pose_at(cycle, phase)
    middle = cycle.stride * phase.mean() + cycle.joints[:, 0, 0].mean() + rng.normal(0, 0.08)
    pose.joints[:, :, 0] -= middle
    pose.joints[:, :, 1] += rng.normal(0, 0.04)  # beside the line
    path = cycle.stride * np.ptp(phase) / 2
    # far enough that every frame shows the whole person, also on a long walk
    distance = max(float(np.clip(rng.normal(3.5, 0.2), 3, 4)), 2.24 * path + 0.3, path + 2.3)
    return Walk(pose, DressedBody(person.body, outfit), distance, float(rng.normal(0.92, 0.02)))


def render(walk: Walk, view: str) -> np.ndarray:
    """Return a walk's clean silhouettes, ``(T, 240, 320)`` uint8, 0 or 255.

    The view is the camera's angle in degrees, as text.
    """
    camera = Camera.around(int(view), walk.distance, walk.camera_height, FOCAL, SIZE)
    parts = [_to_fixed_point(p) for p in walk.dressed_body.outlines(walk.pose, camera)]
    hulls = [_to_fixed_point(p) for p in walk.dressed_body.hulls(walk.pose, camera)]
    frames = np.zeros((len(walk.pose.joints), SIZE[1], SIZE[0]), np.uint8)
    for t, frame in enumerate(frames):
        for part in parts:
            cv2.fillPoly(frame, [part[t]], 255, cv2.LINE_8, SUBPIXEL)
        for points in hulls:
            cv2.fillConvexPoly(frame, cv2.convexHull(points[t]), 255, cv2.LINE_8, SUBPIXEL)
    return frames


def sequence_frames(
    subject: int,
    type: str,
    view: str,
    seed: int = 0,
    *,
    frames: tuple[int, int] = (16, 20),
    noise: float = 1.0,
) -> np.ndarray:
    """Return the raw frames ``(T, 240, 320)`` uint8 (0 or 255) of one walker sequence.

    Args:
        subject: number, from 1.
        type: as in ``TYPES``.
        view: one of ``VIEWS``.
        seed: seed of the data set.
        frames: smallest and largest number of frames; all views of a walk have the same number.
        noise: strength of the camera noise; 0 gives clean silhouettes.

    Raises:
        UserError: the type or the view is unknown, or ``frames`` is impossible.
    """
    if view not in VIEWS:
        raise UserError(f"no camera at view {view!r}; choose from {', '.join(VIEWS)}")
    walk = draw_walk(subject, type, seed, frames)
    return noisy_view(walk, subject, type, view, seed, noise)


def noisy_view(
    walk: Walk, subject: int, type: str, view: str, seed: int, noise: float
) -> np.ndarray:
    """Return ``render(walk, view)`` with the camera noise of this sequence and view."""
    kind, number = _parse_type(type)
    clean = render(walk, view)
    rng = np.random.default_rng([seed, subject, KINDS.index(kind), number, int(view) + 1])
    return add_camera_noise(clean, rng, noise)


def check_frames(frames: tuple[int, int]) -> None:
    """Raise ValueError unless ``frames`` is (least, greatest), both 1 to ``MAX_FRAMES``."""
    low, high = frames
    if not 1 <= low <= high <= MAX_FRAMES:
        raise UserError(
            f"frames is {tuple(frames)}: give (least, greatest), "
            f"1 <= least <= greatest <= {MAX_FRAMES}"
        )


def _parse_type(type: str) -> tuple[str, int]:
    kind, _, number = type.partition("-")
    if kind not in KINDS or not number.isdigit():
        raise UserError(f"unknown type {type!r}; types look like {', '.join(TYPES)}")
    return kind, int(number)


def _to_fixed_point(points: np.ndarray) -> np.ndarray:
    """Return pixel coordinates as OpenCV's fixed-point integers.

    OpenCV counts from the centre of the first pixel, ``shapes.Camera`` from its corner.
    """
    return np.rint((points - 0.5) * (1 << SUBPIXEL)).astype(np.int32)
