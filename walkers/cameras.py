"""Cameras: a ring of them around the middle of the path, as CASIA-B has.

Those near the ends of the path stand further off than those at its side.
"""

from dataclasses import dataclass

import numpy as np

from walkers.shapes import Camera
from walkers.styles import Style

SIZE = (320, 240)  # width and height of CASIA-B's video, pixels
FURTHER = 0.2  # how much further than at the side the cameras stand at the ends of the path
#: Degrees: of these cameras CASIA-B's uppermost rows vary three times as much over a pass as of
#: the others. Masks without head and shoulders at the end of the pass reproduce that.
HEADLESS = range(10, 60)
LOSES_HEAD = 0.92  # of the half pass, in front of its middle: where they do


@dataclass(frozen=True)
class Ring:
    """The cameras of one walk.

    Attributes:
        distance: from the middle of the path to the camera at its side, metres.
        height: of the cameras, metres.
        focal: focal length, pixels.
        headless: place on the path, metres, beyond which some cameras lose head and shoulders.
    """

    distance: float
    height: float
    focal: float
    headless: float

    def camera(self, degrees: int) -> Camera:
        """Return the camera at an angle."""
        away = self.distance * (1 + FURTHER * np.cos(np.radians(degrees)) ** 2)
        return Camera.around(degrees, away, self.height, self.focal, SIZE)

    def first_rows(
        self, degrees: int, camera: Camera, neck: np.ndarray, waist: np.ndarray
    ) -> np.ndarray:
        """Return the uppermost row ``(T,)`` that a mask still has, int; 0 loses nothing.

        Args:
            degrees: the camera's angle. The nearer to the side, the more of the trunk is lost.
            camera: the camera at this angle.
            neck: ``(T, 3)`` metres.
            waist: ``(T, 3)`` metres.
        """
        lost = (neck[:, 0] > self.headless) & (degrees in HEADLESS)
        share = (degrees - 22) / 50  # of the way from neck to waist
        rows = camera.project(neck * (1 - share) + waist * share)[0][:, 1]
        return np.where(lost, rows, 0).clip(0).astype(int)


def draw_ring(rng: np.random.Generator, style: Style, half_path: float) -> Ring:
    """Return the cameras of a walk whose path reaches ``half_path`` metres to both sides.

    On a long walk they stand so far off that the one at the side sees all of it.
    """
    distance = style.distance + float(np.clip(rng.normal(0, 0.2), -0.5, 0.5))
    distance = max(distance, half_path * style.focal / 140 + 0.4)
    height = float(rng.normal(style.camera_height, 0.02))
    return Ring(distance, height, style.focal, max(LOSES_HEAD * half_path, 1.5))
