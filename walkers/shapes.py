"""Shapes: a camera, and the outlines of body parts in its image, as polygons in pixels.

Letters: T frames, S sections along a part. Nothing here depends on the human body.
"""

from dataclasses import dataclass

import numpy as np

CAP_ANGLES = np.radians([60.0, 20.0, -20.0, -60.0])  # points of a limb's rounded end
RING_ANGLES = np.radians(np.arange(0, 360, 45))  # points around a ball


@dataclass(frozen=True, eq=False)
class Camera:
    """A level pinhole camera.

    Attributes:
        position: ``(3,)`` metres.
        ahead, right: ``(3,)`` horizontal unit vectors.
        focal: focal length, pixels.
        centre: where the optical axis meets the image, (x, y) in pixels.
    """

    position: np.ndarray
    ahead: np.ndarray
    right: np.ndarray
    focal: float
    centre: tuple[float, float]

    @classmethod
    def around(
        cls, degrees: float, distance: float, height: float, focal: float, size: tuple[int, int]
    ) -> "Camera":
        """Return a camera on a circle around the origin, which it faces.

        Args:
            degrees: angle of its place from +x towards +y.
            distance: from the origin, metres.
            height: metres.
            focal: focal length, pixels.
            size: width and height of the image, pixels.
        """
        a = np.radians(degrees)
        outward = np.array([np.cos(a), np.sin(a), 0.0])
        position = distance * outward + [0, 0, height]
        right = np.array([-np.sin(a), np.cos(a), 0.0])
        return cls(position, -outward, right, focal, (size[0] / 2, size[1] / 2))

    def project(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return pixels ``(..., 2)`` and pixels per metre ``(...)`` of points ``(..., 3)``."""
        rel = points - self.position
        scale = self.focal / (rel[..., 0] * self.ahead[0] + rel[..., 1] * self.ahead[1])
        x = self.centre[0] + scale * (rel[..., 0] * self.right[0] + rel[..., 1] * self.right[1])
        y = self.centre[1] - scale * rel[..., 2]
        return np.stack([x, y], axis=-1), scale

    def across(self, vectors: np.ndarray) -> np.ndarray:
        """Return the component ``(...)`` of vectors ``(..., 3)`` along the rows of the image."""
        return vectors[..., 0] * self.right[0] + vectors[..., 1] * self.right[1]


def stack(
    camera: Camera,
    centres: np.ndarray,
    left: np.ndarray,
    forward: np.ndarray,
    breadth: np.ndarray,
    depth: np.ndarray,
) -> np.ndarray:
    """Return the outline ``(T, 2S, 2)`` of elliptic sections stacked upwards.

    An ellipse with half axes a (left) and b (forward) extends sqrt((a left.u)^2 + (b forward.u)^2)
    to each side along the image's row direction u.

    Args:
        camera: the camera.
        centres: ``(T, S, 3)`` metres.
        left: ``(T, S, 3)`` unit vectors along the breadth.
        forward: ``(T, S, 3)`` unit vectors along the depth.
        breadth: ``(S,)`` half axes a, metres.
        depth: ``(S,)`` half axes b, metres.
    """
    half = np.sqrt((breadth * camera.across(left)) ** 2 + (depth * camera.across(forward)) ** 2)
    xy, scale = camera.project(centres)
    reach = half * scale
    out = np.concatenate([xy, xy[:, ::-1]], axis=1)
    out[:, :, 0] += np.concatenate([-reach, reach[:, ::-1]], axis=1)
    return out


def limb(camera: Camera, start: np.ndarray, end: np.ndarray, radii: np.ndarray) -> np.ndarray:
    """Return the outline ``(T, 2S + 8, 2)`` of a round limb with rounded ends.

    Args:
        camera: the camera.
        start: ``(T, 3)`` metres.
        end: ``(T, 3)`` metres.
        radii: ``(S,)`` metres, evenly spaced along the limb.
    """
    share = np.linspace(0, 1, len(radii))[:, None]
    xy, scale = camera.project(start[:, None] * (1 - share) + end[:, None] * share)  # (T, S, 2)
    along = xy[:, -1] - xy[:, 0]
    along = along / np.maximum(np.sqrt((along**2).sum(1, keepdims=True)), 1e-6)
    normal = np.stack([-along[:, 1], along[:, 0]], axis=1)
    size = radii * scale  # (T, S)
    side = size[..., None] * normal[:, None]

    def cap(at: int, angles: np.ndarray) -> np.ndarray:
        turned = (
            np.cos(angles)[:, None] * along[:, None] + np.sin(angles)[:, None] * normal[:, None]
        )
        return xy[:, at, None] + size[:, at, None, None] * turned  # (T, 4, 2)

    return np.concatenate(
        [xy + side, cap(-1, CAP_ANGLES), (xy - side)[:, ::-1], cap(0, np.pi + CAP_ANGLES)], axis=1
    )


def balls(camera: Camera, centres: np.ndarray, radii: np.ndarray) -> np.ndarray:
    """Return points ``(T, 8S, 2)`` around S balls; their convex hull covers the balls.

    Args:
        camera: the camera.
        centres: ``(T, S, 3)`` metres.
        radii: ``(S,)`` metres.
    """
    xy, scale = camera.project(centres)
    ring = np.stack([np.cos(RING_ANGLES), np.sin(RING_ANGLES)], axis=1)  # (8, 2)
    points = xy[:, :, None] + (radii * scale)[..., None, None] * ring
    return points.reshape(len(xy), -1, 2)


def drape(
    camera: Camera, left: np.ndarray, right: np.ndarray, radii: np.ndarray, flare: np.ndarray
) -> np.ndarray:
    """Return the outline ``(T, 2S, 2)`` of cloth that hangs around two legs.

    Cloth hangs from the widest place above, so its edges move inwards only slowly on the way down.

    Args:
        camera: the camera.
        left: ``(T, S, 3)`` points down the left leg, metres.
        right: ``(T, S, 3)`` points down the right leg, metres.
        radii: ``(S,)`` radius of leg and cloth, metres.
        flare: ``(S,)`` further distance of the cloth from the leg, metres.
    """
    (a, sa), (b, sb) = camera.project(left), camera.project(right)
    low = np.minimum(a[..., 0] - radii * sa, b[..., 0] - radii * sb)
    high = np.maximum(a[..., 0] + radii * sa, b[..., 0] + radii * sb)
    y = (a[..., 1] + b[..., 1]) / 2
    scale = (sa + sb) / 2
    taper = np.arange(len(radii)) * 0.012 * scale
    low = np.minimum.accumulate(low - taper, axis=1) + taper - flare * scale
    high = np.maximum.accumulate(high + taper, axis=1) - taper + flare * scale
    down = np.stack([low, y], axis=-1)
    up = np.stack([high, y], axis=-1)
    return np.concatenate([down, up[:, ::-1]], axis=1)


def smooth_profile(knots: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Interpolate a table with a smooth cubic (Hermite) curve.

    Args:
        knots: ``(K, 1 + C)``: a rising column of places, and C columns of values.
        at: ``(S,)`` places to interpolate at.

    Returns:
        ``(S, C)``.
    """
    x, v = knots[:, 0], knots[:, 1:]
    slope = np.gradient(v, x, axis=0)
    i = np.clip(np.searchsorted(x, at, side="right") - 1, 0, len(x) - 2)
    h = (x[i + 1] - x[i])[:, None]
    t = ((at - x[i])[:, None]) / h
    return (
        (2 * t**3 - 3 * t**2 + 1) * v[i]
        + (t**3 - 2 * t**2 + t) * h * slope[i]
        + (3 * t**2 - 2 * t**3) * v[i + 1]
        + (t**3 - t**2) * h * slope[i + 1]
    )
