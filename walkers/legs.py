"""Legs: the right leg's joints over a cycle, with a foot that does not slide on the ground.

1. Forward kinematics (the curves of hip, knee and ankle) gives the ankle's place below the hip.
2. The foot on the ground rolls over heel, sole and ball without sliding. This gives the ankle's
   place in the world. The difference of the two is where a stance leg carries the pelvis. In double
   support the two legs disagree, and the path fades from one to the other. The result is the
   pelvis's path and the step length.
3. The swinging ankle follows the kinematics from one stance to the next.
4. Two-link inverse kinematics bends thigh and shank so that they join hip and ankle.

Axes: x forward, y left, z up. Phase 0 is the right heel strike. M is ``SAMPLES``.
"""

import numpy as np

from walkers.body import Body
from walkers.gait import Gait
from walkers.norms import curves, fourier_series

SAMPLES = 200  # per cycle; even, so that half a cycle is a whole number of samples
LEG_JOINTS = ("hip", "knee", "ankle", "heel", "ball", "toe")
MAX_EXTENSION = 0.997  # largest distance from hip to ankle, as share of thigh + shank


class Leg:
    """The right leg over a cycle of M samples; ``solve`` turns two dimensions into three.

    Args:
        body: the person's body.
        gait: the gait of the walk.
        phase: ``(M,)`` cycles.
        hip_offset: ``(M, 3)`` right hip from the pelvis's centre, metres.
        scale: scale of the hip's swing.

    Attributes:
        step: step length, metres.
    """

    def __init__(
        self, body: Body, gait: Gait, phase: np.ndarray, hip_offset: np.ndarray, scale: float
    ):
        self.body, self.gait, self.phase, self.hip_offset = body, gait, phase, hip_offset
        knee, ankle, hip = (
            fourier_series(gait.mean[n], k * gait.harmonics[n], phase)
            for n, k in (("knee_flexion", 1), ("ankle_dorsiflexion", 1), ("hip_flexion", scale))
        )
        # the measured spread is of the thigh's slant, so all people share the norm's pelvic tilt
        tilt = curves()["pelvis_tilt"]
        thigh = np.radians(hip - fourier_series(tilt.mean, tilt.harmonics, phase))
        shank = thigh - np.radians(knee)
        self.ankle_from_hip = np.stack(  # (M, 2): x, z
            [
                body.thigh * np.sin(thigh) + body.shank * np.sin(shank),
                -body.thigh * np.cos(thigh) - body.shank * np.cos(shank),
            ],
            axis=1,
        )
        self.pitch = _foot_pitch(shank + np.radians(ankle), phase, gait)
        length = body.m["footlength"] + 0.02
        # places in a flat foot, from the point where the heel touches the ground
        self.ankle = np.array([0.25 * length, body.ankle_height])
        self.ball = np.array([0.70 * length, 0.0])
        self.toe = np.array([length, 0.0])
        self.stance = int(round(gait.toe_off * SAMPLES))  # last sample with the foot on the ground
        self._plan_pelvis()

    def _plan_pelvis(self) -> None:
        """Find the step and the pelvis's path over half a cycle from both legs."""
        half = SAMPLES // 2
        planted = self._stance_ankle()
        # the pelvis that the planted foot implies, (M, 2); valid in stance alone
        implied = planted - self.ankle_from_hip - self.hip_offset[:, [0, 2]]
        both = self.stance - half + 1  # number of samples of double support
        fade = np.ones(half)
        fade[:both] = _smoothstep(np.arange(both) / both)
        apart = (implied[half : half + both] - implied[:both])[:, 0]
        self.step = float(np.average(apart, weights=(1 - fade[:both]) ** 2))  # weighs landing most
        other = np.concatenate([implied[half : half + both], np.zeros((half - both, 2))])
        other[:, 0] -= self.step
        path = fade[:, None] * implied[:half] + (1 - fade[:, None]) * other
        path[:, 0] -= 2 * self.step * self.phase[:half]
        waves = np.fft.rfft(path, axis=0)
        waves[3:] = 0
        waves[1:, 0] *= 0.5  # inertia: the body's speed varies less than the legs' angles imply
        path = np.fft.irfft(waves, half, axis=0)
        rise = np.ptp(path[:, 1])
        path[:, 1] = path[:, 1].mean() + (path[:, 1] - path[:, 1].mean()) * min(1.0, 0.055 / rise)
        self.path = path

    def pelvis_path(self) -> np.ndarray:
        """Return the pelvis's centre ``(M, 3)``, including forward travel; y is zero."""
        pelvis = np.zeros((SAMPLES, 3))
        pelvis[:, [0, 2]] = np.concatenate([self.path, self.path])
        pelvis[:, 0] += 2 * self.step * self.phase
        return pelvis

    def _stance_ankle(self) -> np.ndarray:
        """Return the ankle ``(M, 2)`` (x, z) of a foot that rolls over a heel planted at x = 0."""
        heel_roll = _rotate(np.broadcast_to(self.ankle, (SAMPLES, 2)), self.pitch)
        ball_roll = self.ball + _rotate(
            np.broadcast_to(self.ankle - self.ball, (SAMPLES, 2)), self.pitch
        )
        return np.where(self.pitch[:, None] > 0, heel_roll, ball_roll)

    def solve(self, pelvis: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the leg's joints ``(M, 6, 3)`` and the pelvis ``(M, 3)``.

        The pelvis is moved so that the leg reaches the ground.
        """
        gait, n = self.gait, self.stance + 1
        yaw = np.radians(gait.toe_out)
        ahead = np.array([np.cos(yaw), -np.sin(yaw)])  # the right foot points out, to -y
        planted = self._stance_ankle()
        ankle = np.empty((SAMPLES, 3))
        ankle[:, :2] = planted[:, :1] * ahead + [0, -gait.step_width / 2]
        ankle[:, 2] = planted[:, 1]

        limit = MAX_EXTENSION * (self.body.thigh + self.body.shank)
        pelvis = pelvis + self._within_reach(pelvis, ankle[:n], limit)
        hip = pelvis + self.hip_offset

        # swing: the free leg's path, shifted so that it starts and ends where the foot is planted
        share = (np.arange(n, SAMPLES) - self.stance) / (SAMPLES - self.stance)
        blend = _smoothstep(share)[:, None]
        free_ankle = hip.copy()
        free_ankle[:, [0, 2]] += self.ankle_from_hip
        last, landing = ankle[self.stance], ankle[0] + [2 * self.step, 0, 0]
        first_free, next_free = free_ankle[self.stance], free_ankle[0] + [2 * self.step, 0, 0]
        swing = free_ankle[n:] + (1 - blend) * (last - first_free) + blend * (landing - next_free)
        swerve = gait.circumduction * np.sin(np.pi * share) ** 2
        swing[:, 1] = last[1] + blend[:, 0] * (landing[1] - last[1]) - swerve
        ankle[n:] = swing

        heel, ball, toe = self._foot(ankle, ahead)
        sunk = np.minimum(0, np.minimum(np.minimum(heel[:, 2], ball[:, 2]), toe[:, 2]))
        sunk[:n] = 0
        for point in (ankle, heel, ball, toe):
            point[:, 2] -= sunk
        reach = ankle - hip
        length = np.sqrt((reach**2).sum(1, keepdims=True))
        shift = reach * (np.minimum(1, limit / length) - 1)
        shift[:n] = 0
        for point in (ankle, heel, ball, toe):
            point += shift
        knee = _bend_knee(hip, ankle, self.body.thigh, self.body.shank, np.radians(gait.knee_out))
        return np.stack([hip, knee, ankle, heel, ball, toe], axis=1), pelvis

    def _within_reach(self, pelvis: np.ndarray, ankle: np.ndarray, limit: float) -> np.ndarray:
        """Return the shift ``(M, 3)`` of the pelvis that lets the stance leg reach the ground.

        The pelvis moves forward or back, to where it has to sink least. It sinks most where the
        legs are apart.
        """
        hip = (pelvis + self.hip_offset)[: len(ankle)]
        ahead = np.linspace(-0.10, 0.10, 41)
        x = (hip - ankle)[:, :1] + ahead  # (n, 41)
        flat = x**2 + (hip - ankle)[:, 1:2] ** 2
        highest = ankle[:, 2:] + np.sqrt(np.maximum(limit**2 - flat, 0.01))
        drop = np.maximum(0, hip[:, 2:] - highest)
        # when the legs are apart, bending more than the curves say is penalised
        apart = np.array([0, SAMPLES // 2])
        height = hip[apart, 2:] - drop.max(0) - ankle[apart, 2:]
        length = np.sqrt(flat[apart] + height**2)  # (2, 41)
        asked = np.sqrt((self.ankle_from_hip[apart] ** 2).sum(1, keepdims=True))
        short = np.maximum(0, asked - length).sum(0)
        best = np.argmin(drop.max(0) + short + 0.02 * np.abs(ahead))
        where = self.phase[np.argmax(drop[:, best])]
        shape = 0.65 + 0.35 * np.cos(4 * np.pi * (self.phase - where))  # the same in both halves
        shift = np.zeros_like(pelvis)
        shift[:, 0] = ahead[best]
        shift[:, 2] = -shape * (drop[:, best] / shape[: len(ankle)]).max()
        return shift

    def _foot(
        self, ankle: np.ndarray, ahead: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return heel, ball and tip of the toes, each ``(M, 3)``, from the ankle ``(M, 3)``."""
        leaving = self.pitch[self.stance]
        share = np.clip((np.arange(SAMPLES) - self.stance) / (0.16 * SAMPLES), 0, 1)
        toes = np.where(self.pitch < 0, 0.0, self.pitch)  # flat while the heel is up
        swinging = np.arange(SAMPLES) > self.stance
        toes = np.where(swinging, self.pitch - leaving * (1 - _smoothstep(share)), toes)
        toes = np.maximum(toes, self.pitch)  # toes bend up only

        def place(vector: np.ndarray) -> np.ndarray:
            out = np.empty((SAMPLES, 3))
            out[:, :2] = vector[:, :1] * ahead
            out[:, 2] = vector[:, 1]
            return out

        def turned(vector: np.ndarray, angle: np.ndarray) -> np.ndarray:
            return _rotate(np.broadcast_to(vector, (SAMPLES, 2)), angle)

        heel = ankle + place(turned(-self.ankle, self.pitch))
        ball = ankle + place(turned(self.ball - self.ankle, self.pitch))
        toe = ball + place(turned(self.toe - self.ball, toes))
        return heel, ball, toe


def _foot_pitch(raw: np.ndarray, phase: np.ndarray, gait: Gait) -> np.ndarray:
    """Return the sole's pitch ``(M,)`` (radians, positive with the toes up), 0 in mid-stance."""
    flat = (phase > 0.10) & (phase < 0.32)
    pitch = raw - raw[flat].mean()
    keep = 1 - _smoothstep(phase / 0.08) + _smoothstep((phase - 0.33) / 0.14)
    pitch = pitch * keep
    early = phase <= 0.33
    late = ~early & (phase <= gait.toe_off + 0.05)
    pitch = np.where(early, np.maximum(pitch, 0), pitch)
    pitch = np.where(late, np.minimum(pitch, 0), pitch)
    return np.radians(np.clip(np.degrees(pitch), -78, 35))


def _bend_knee(
    hip: np.ndarray, ankle: np.ndarray, thigh: float, shank: float, out: float
) -> np.ndarray:
    """Return the knee ``(M, 3)``, which points forward, turned by ``out`` (radians) to -y."""
    reach = ankle - hip
    d = np.sqrt((reach**2).sum(1, keepdims=True))
    along = reach / d
    a = (thigh**2 - shank**2 + d**2) / (2 * d)
    height = np.sqrt(np.maximum(thigh**2 - a**2, 0))
    pole = np.array([np.cos(out), -np.sin(out), 0.0])
    side = pole - along * (along @ pole)[:, None]
    side = side / np.sqrt((side**2).sum(1, keepdims=True))
    return hip + a * along + height * side


def _rotate(vectors: np.ndarray, angle: np.ndarray) -> np.ndarray:
    """Rotate (x, z) vectors ``(M, 2)`` by angles in radians; a positive one lifts +x."""
    c, s = np.cos(angle), np.sin(angle)
    x, z = vectors[:, 0], vectors[:, 1]
    return np.stack([x * c - z * s, x * s + z * c], axis=1)


def _smoothstep(x: np.ndarray) -> np.ndarray:
    """Return 0 below 0, 1 above 1, and a smooth cubic between."""
    x = np.clip(x, 0, 1)
    return x * x * (3 - 2 * x)
