"""Scenes: a subject number and a seed become raw frames of a walk in front of eleven cameras.

The person walks along +x, past the middle of a ring of cameras at hip height. As in CASIA-B (Yu,
Tan and Tan 2006), 000 sees the front, 090 the left side, 180 the back. All cameras see the same
walk at the same moments. On a whole pass of 3 to 4 seconds the person comes nearer and turns by
tens of degrees to most cameras.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import cv2
import numpy as np

from gaitlib.system.errors import UserError
from walkers.body import Body, draw_body
from walkers.camera_noise import add_camera_noise, draw_contrast
from walkers.cameras import SIZE, Ring, draw_ring
from walkers.dressed_body import MATERIALS, DressedBody
from walkers.gait import Gait, draw_gait, vary_gait
from walkers.motion import Pose, pose_at, walk_cycle
from walkers.outfit import Outfit, draw_load, draw_outfit, dress, gait_under_load
from walkers.styles import DEFAULT, STYLES, Style

TYPES = ("nm-01", "nm-02", "nm-03", "nm-04", "nm-05", "nm-06", "bg-01", "bg-02", "cl-01", "cl-02")
VIEWS = tuple(f"{18 * i:03d}" for i in range(11))
KINDS = ("nm", "bg", "cl")
FPS = 25.0  # frames per second
MAX_FRAMES = 120  # of the camera, from the first to the last of a sequence
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
        ring: the cameras.
    """

    pose: Pose
    dressed_body: DressedBody
    ring: Ring


def draw_person(subject: int, seed: int = 0, style: Style = STYLES[DEFAULT]) -> Person:
    """Return the person with a subject number, for a seed of the data set."""
    rng = np.random.default_rng([seed, subject])
    body = draw_body(rng)
    return Person(body, draw_gait(body.sex, rng), draw_outfit(body.sex, rng, style))


def draw_walk(
    subject: int,
    type: str,
    seed: int = 0,
    frames: tuple[int, int] = (16, 20),
    frame_step: int = 1,
    style: str = DEFAULT,
) -> Walk:
    """Return one walk of a subject, with varied gait and clothes, and a random start and length.

    Args:
        subject: number, from 1.
        type: a kind ("nm", "bg", "cl") and a number, like "nm-01".
        seed: seed of the data set.
        frames: smallest and largest number of frames.
        frame_step: each frame is so many of the camera's after the one before: with 24 frames, 4 is
            a whole pass, 1 a second of it.
        style: a name of ``STYLES``.
    """
    kind, number = _parse_type(type)
    check_frames(frames, frame_step)
    drawing = STYLES[style]
    person = draw_person(subject, seed, drawing)
    own = [seed, subject, KINDS.index(kind)]
    rng = np.random.default_rng([*own, number])
    # as in CASIA-B, the walks 01 and 02 have the same bag or coat; so have 03 and 04
    load = draw_load(kind, np.random.default_rng([*own, 1000 + (number + 1) // 2]), drawing)
    outfit = dress(person.outfit, load, rng)
    cycle = walk_cycle(person.body, gait_under_load(vary_gait(person.gait, rng), outfit))
    count = int(rng.integers(frames[0], frames[1] + 1))
    start = rng.random()
    phase = start + frame_step * np.arange(count) / (FPS * cycle.period)
    pose = pose_at(cycle, phase)
    middle = cycle.stride * phase.mean() + cycle.joints[:, 0, 0].mean() + rng.normal(0, 0.08)
    pose.joints[:, :, 0] -= middle
    pose.joints[:, :, 1] += rng.normal(0, 0.04)  # beside the line
    ring = draw_ring(rng, drawing, half_path=cycle.stride * np.ptp(phase) / 2)
    return Walk(pose, DressedBody(person.body, outfit), ring)


def render(walk: Walk, view: str, grey: Mapping[str, int] | None = None) -> np.ndarray:
    """Return a walk's silhouettes without noise, ``(T, 240, 320)`` uint8, 0 beside the person.

    Args:
        walk: the walk.
        view: the camera's angle in degrees, as text.
        grey: value of each material (``MATERIALS``), 1 to 255; None draws all with 255.
    """
    camera = walk.ring.camera(int(view))
    grey = grey or dict.fromkeys(MATERIALS, 255)
    body = walk.dressed_body
    parts = [(grey[m], _to_fixed_point(p)) for m, p in body.outlines(walk.pose, camera)]
    hulls = [(grey[m], _to_fixed_point(p)) for m, p in body.hulls(walk.pose, camera)]
    frames = np.zeros((len(walk.pose.joints), SIZE[1], SIZE[0]), np.uint8)
    neck, waist = walk.pose.joint("neck"), walk.pose.joint("waist")
    first_rows = walk.ring.first_rows(int(view), camera, neck, waist)
    for t, frame in enumerate(frames):
        for value, points in hulls:
            cv2.fillConvexPoly(frame, cv2.convexHull(points[t]), value, cv2.LINE_8, SUBPIXEL)
        for value, part in parts:
            cv2.fillPoly(frame, [part[t]], value, cv2.LINE_8, SUBPIXEL)
        frame[: first_rows[t]] = 0
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
    rng = np.random.default_rng([seed, subject, KINDS.index(kind), number, int(view) + 1])
    return add_camera_noise(render(walk, view, draw_contrast(rng, noise)), rng, noise)


def check_frames(frames: tuple[int, int], frame_step: int = 1) -> None:
    """Raise ValueError unless ``frames`` is (least, greatest) and fits into ``MAX_FRAMES``."""
    low, high = frames
    if not 1 <= low <= high <= MAX_FRAMES:
        raise UserError(
            f"frames is {tuple(frames)}: give (least, greatest), "
            f"1 <= least <= greatest <= {MAX_FRAMES}"
        )
    most = MAX_FRAMES // high
    if not 1 <= frame_step <= most:
        raise UserError(
            f"frame_step is {frame_step}: a pass has {MAX_FRAMES} frames, so with {high} of them "
            f"give 1 to {most}"
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
