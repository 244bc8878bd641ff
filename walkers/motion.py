"""Motion: joint positions in metres, over one gait cycle and at any moment.

The right leg comes from ``legs.py``. Its hip curve is scaled until it makes the person's step. The
left leg is its mirror image half a cycle later. Forward kinematics places trunk, head and arms,
starting at the pelvis.

Axes: x forward (the direction of walking), y left, z up. Phase 0 is a right heel strike. M is
``SAMPLES``.
"""

from dataclasses import dataclass

import numpy as np

from walkers.body import Body
from walkers.gait import Gait
from walkers.legs import LEG_JOINTS, SAMPLES, Leg
from walkers.norms import curves, fourier_series

ARM_JOINTS = ("shoulder", "elbow", "wrist", "fingers")
SIDED = LEG_JOINTS + ARM_JOINTS
JOINTS = ("pelvis", "waist", "neck", "head", *(f"{j}_{s}" for s in ("l", "r") for j in SIDED))
PARTS_WITH_AXES = ("pelvis", "thorax", "head")  # axes: forward, left, up


@dataclass(frozen=True, eq=False)
class Cycle:
    """One gait cycle of M samples, periodic without the forward travel.

    Attributes:
        joints: ``(M, J, 3)`` metres, in the order of ``JOINTS``, minus ``stride * phase`` in x.
        axes: ``(M, 3 parts, 3 axes, 3)`` unit vectors, parts as in ``PARTS_WITH_AXES``.
        stride: metres per cycle.
        period: seconds per cycle.
        toe_off: end of the right foot's stance, as share of the cycle.
    """

    joints: np.ndarray
    axes: np.ndarray
    stride: float
    period: float
    toe_off: float


@dataclass(frozen=True, eq=False)
class Pose:
    """Joints ``(T, J, 3)`` in metres and axes ``(T, 3, 3, 3)`` at T moments."""

    joints: np.ndarray
    axes: np.ndarray

    def joint(self, name: str) -> np.ndarray:
        """Return one joint's positions ``(T, 3)``, metres."""
        return self.joints[:, JOINTS.index(name)]

    def axes_of(self, name: str) -> np.ndarray:
        """Return the unit vectors forward, left and up ``(T, 3, 3)`` of a body part."""
        return self.axes[:, PARTS_WITH_AXES.index(name)]


def pose_at(cycle: Cycle, phase: np.ndarray) -> Pose:
    """Return the pose at each phase (``(T,)`` cycles, any real number).

    The person has travelled ``stride * phase``. Samples are interpolated linearly: with 200 of them
    a planted foot and a bone's length stay exact to a tenth of a millimetre.
    """
    place = (phase % 1.0) * SAMPLES
    low = place.astype(int)
    part = (place - low)[:, None, None]
    low, high = low % SAMPLES, (low + 1) % SAMPLES
    joints = cycle.joints[low] * (1 - part) + cycle.joints[high] * part
    joints[:, :, 0] += (cycle.stride * phase)[:, None]
    part = part[..., None]
    axes = cycle.axes[low] * (1 - part) + cycle.axes[high] * part
    return Pose(joints, axes)


def walk_cycle(body: Body, gait: Gait) -> Cycle:
    """Return one cycle of a body's walk."""
    phase = np.arange(SAMPLES) / SAMPLES
    half = SAMPLES // 2
    pelvis_axes, thorax_axes, head_axes = _trunk_axes(gait, phase)
    hip_offset = -body.hip_half * pelvis_axes[:, 1]  # the right hip, from the pelvis's centre

    scale, target = 1.0, gait.stride * body.stature / 2
    for _ in range(4):  # the step is almost linear in the scale
        leg = Leg(body, gait, phase, hip_offset, scale)
        scale = float(np.clip(scale * target / leg.step, 0.6, 1.7))
    pelvis = leg.pelvis_path()
    pelvis[:, 1] = -fourier_series(0.0, gait.sway, phase)
    right, pelvis = leg.solve(pelvis)  # (M, 6, 3), (M, 3), both with travel

    travel = np.zeros((SAMPLES, 1, 3))
    travel[:, 0, 0] = 2 * leg.step * phase
    right = right - travel
    pelvis = pelvis - travel[:, 0]
    left = np.roll(right, half, axis=0) * [1, -1, 1]
    trunk = _trunk_joints(body, gait, pelvis, pelvis_axes, thorax_axes, head_axes)
    arms = {s: _arm(body, gait, phase, trunk, thorax_axes, s) for s in ("l", "r")}
    joints = [
        *(trunk[n][:, None] for n in ("pelvis", "waist", "neck", "head")),
        left,
        arms["l"],
        right,
        arms["r"],
    ]
    return Cycle(
        np.concatenate(joints, axis=1),
        np.stack([pelvis_axes, thorax_axes, head_axes], axis=1),
        2 * leg.step,
        120.0 / gait.cadence,
        gait.toe_off,
    )


def _trunk_axes(gait: Gait, phase: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the axes of pelvis, thorax and head, each ``(M, 3, 3)``.

    The mean of the pelvis's tilt is taken out: it is the slant of the bone, not of the body.
    """

    def angle(name: str) -> np.ndarray:
        return np.radians(fourier_series(gait.mean[name], gait.harmonics[name], phase))

    tilt = angle("pelvis_tilt")
    lean = np.radians(gait.lean) + angle("thorax_lean") - np.radians(curves()["thorax_lean"].mean)
    nod = angle("head_pitch") - np.radians(curves()["head_pitch"].mean)
    yaw, roll = angle("thorax_rotation"), angle("thorax_obliquity")
    yaw = yaw - yaw.mean()
    hips = (angle("pelvis_rotation"), angle("pelvis_obliquity"))
    hips = [h - h.mean() for h in hips]  # a part shared by both sides faces forward on average
    pelvis = _axes(hips[0], hips[1], tilt - tilt.mean() + 0.3 * lean.mean())
    thorax = _axes(yaw, roll - roll.mean(), lean)
    head = _axes(0.4 * yaw, np.zeros_like(yaw), 0.6 * nod)
    return pelvis, thorax, head


def _trunk_joints(
    body: Body,
    gait: Gait,
    pelvis: np.ndarray,
    pelvis_axes: np.ndarray,
    thorax_axes: np.ndarray,
    head_axes: np.ndarray,
) -> dict[str, np.ndarray]:
    """Return pelvis, waist, neck base, head pivot and both shoulders by name, each ``(M, 3)``."""
    m, s = body.m, body.stature
    waist = pelvis + pelvis_axes[:, 2] * (m["waistheightomphalion"] - m["trochanterionheight"])
    forward, left, up = (thorax_axes[:, i] for i in range(3))
    rise = m["cervicaleheight"] - m["waistheightomphalion"]
    neck = waist + up * rise + forward * gait.stoop
    head = neck + up * (0.915 * s - m["cervicaleheight"]) + forward * gait.head_forward
    drop = m["cervicaleheight"] - m["acromialheight"] + 0.042 + body.slope
    middle = neck - up * drop - forward * 0.3 * gait.stoop
    half = 0.5 * m["biacromialbreadth"] - 0.018
    return {
        "pelvis": pelvis,
        "waist": waist,
        "neck": neck,
        "head": head,
        "shoulder_l": middle + left * half,
        "shoulder_r": middle - left * half,
    }


def _arm(
    body: Body,
    gait: Gait,
    phase: np.ndarray,
    trunk: dict[str, np.ndarray],
    thorax_axes: np.ndarray,
    side: str,
) -> np.ndarray:
    """Return shoulder, elbow, wrist and fingertips of one arm, ``(M, 4, 3)``."""
    outward, swing = (1.0, gait.arm_swing[0]) if side == "l" else (-1.0, gait.arm_swing[1])
    own = phase + 0.5 if side == "l" else phase
    flexion = fourier_series(
        gait.mean["shoulder_flexion"], swing * gait.harmonics["shoulder_flexion"], own
    )
    elbow = fourier_series(gait.mean["elbow_flexion"], swing * gait.harmonics["elbow_flexion"], own)
    abduction = fourier_series(
        gait.mean["shoulder_abduction"], 3 * gait.harmonics["shoulder_abduction"], own
    )
    # markers lie outside the arm: in CMU's skeletons it is nearer the body and straighter
    elbow, abduction = np.clip(elbow - 7, 5, 120), np.clip(abduction - 7, -3, 40)
    upper = _arm_direction(thorax_axes, flexion, abduction, outward)
    inward = 8 - 0.55 * abduction - gait.forearm_in * np.clip(elbow / 40, 0.3, 1.5)
    fore = _arm_direction(thorax_axes, flexion + elbow, inward, outward)
    hand = _arm_direction(thorax_axes, flexion + elbow + 6, inward * 0.8, outward)
    points = [trunk[f"shoulder_{side}"]]
    lengths = ("acromionradialelength", "radialestylionlength", "handlength")
    shorter = (-0.035, 0.0, -0.06)  # the shoulder joint lies below the acromion, fingers are bent
    for direction, name, less in zip((upper, fore, hand), lengths, shorter, strict=True):
        points.append(points[-1] + direction * (body.m[name] + less))
    return np.stack(points, axis=1)


def _arm_direction(
    axes: np.ndarray, flexion: np.ndarray, abduction: np.ndarray, outward: float
) -> np.ndarray:
    """Return unit vectors ``(M, 3)`` of a limb; it points down if both angles (degrees) are 0."""
    f, a = np.radians(flexion)[:, None], np.radians(abduction)[:, None]
    forward, left, up = (axes[:, i] for i in range(3))
    return np.sin(f) * np.cos(a) * forward + outward * np.sin(a) * left - np.cos(f) * np.cos(a) * up


def _axes(yaw: np.ndarray, roll: np.ndarray, pitch: np.ndarray) -> np.ndarray:
    """Return the unit vectors forward, left and up ``(M, 3, 3)``.

    Yaw turns the right side forward, roll lifts it, pitch leans forward; all in radians.
    """
    zero = np.zeros_like(yaw)
    forward = np.stack([np.cos(yaw), np.sin(yaw), zero], axis=1)
    left = np.stack(
        [-np.sin(yaw) * np.cos(roll), np.cos(yaw) * np.cos(roll), -np.sin(roll)], axis=1
    )
    up = np.cross(forward, left)
    c, s = np.cos(pitch)[:, None], np.sin(pitch)[:, None]
    return np.stack([forward * c - up * s, left, up * c + forward * s], axis=1)
