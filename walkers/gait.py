"""Gaits: how one person moves, as Fourier curves of joint angles and some single numbers.

A person's curves are the norm's with a smooth deformation: the mean and every harmonic are drawn
within the spread between people. A sequence deforms the person's curves again, within the smaller
spread between one person's walks. Nothing is drawn per frame.
"""

from dataclasses import dataclass, replace

import numpy as np

from walkers.norms import HARMONICS, curves, load_norms

# Pelvis and trunk are shared by both legs: half a cycle later they are their own mirror image.
EVEN_CURVES = ("pelvis_tilt", "thorax_lean", "head_pitch")  # the same in both halves
# opposite in the two halves
ODD_CURVES = ("pelvis_obliquity", "pelvis_rotation", "thorax_obliquity", "thorax_rotation")
BETWEEN_SCALE = 0.65  # with all of CMU's spread shanks vary more than CASIA-B's
TIMING_SCALE = 0.6  # CMU's timing_sd also holds unsure heel strikes and some stylised walks
WITHIN_SCALE = 0.3  # CMU's within_sd also holds changes of speed and cycle-to-cycle noise


@dataclass(frozen=True, eq=False)
class Gait:
    """How one person walks.

    Attributes:
        mean, harmonics: angle curves by name as in ``norms.Curve``, degrees.
        cadence: steps per minute.
        stride: stride length divided by stature.
        step_width: sideways distance between the heels, metres.
        toe_out: outward turn of the feet, degrees.
        toe_off: end of stance, as share of the cycle.
        sway: phasors of the pelvis's sideways motion towards the stance side, metres.
        circumduction: how far the swinging foot moves outwards, metres.
        knee_out: outward turn of the knees, degrees (negative: knock-knees).
        arm_swing: scale of the arms' swing, (left, right).
        forearm_in: how far the forearms turn towards the front of the body, degrees.
        lean: forward lean of the trunk, degrees.
        stoop: how far the neck's base lies in front of the hips, metres.
        head_forward: how far the head lies in front of the neck's base, metres.
    """

    mean: dict[str, float]
    harmonics: dict[str, np.ndarray]
    cadence: float
    stride: float
    step_width: float
    toe_out: float
    toe_off: float
    sway: np.ndarray
    circumduction: float
    knee_out: float
    arm_swing: tuple[float, float]
    forearm_in: float
    lean: float
    stoop: float
    head_forward: float


def draw_gait(sex: str, rng: np.random.Generator) -> Gait:
    """Draw a person's gait."""

    def z(*shape: int) -> np.ndarray:
        return np.clip(rng.standard_normal(shape), -2, 2)

    mean, harmonics = {}, {}
    for name, c in curves().items():
        direction = np.exp(1j * np.angle(c.harmonics))
        longer, later = c.amplitude_sd * z(HARMONICS), c.timing_sd * z(HARMONICS)
        moved = BETWEEN_SCALE * longer + 1j * TIMING_SCALE * later
        mean[name] = c.mean + c.offset_sd * float(z())
        harmonics[name] = _keep_parity(name, c.harmonics + direction * moved)
    pace, sway = load_norms()["pace"][sex], load_norms()["sway"]
    base = np.array([a - 1j * b for a, b in sway["harmonics_mm"]])
    spread = np.array(sway["amplitude_sd_mm"]) * z(3) + 1j * np.array(sway["timing_sd_mm"]) * z(3)
    mean["shoulder_abduction"] += 12 * float(z())  # elbows near the trunk or far from it
    swing = 0.8 * np.exp(0.12 * z())
    lopsided = 0.12 * z()
    return Gait(
        mean,
        harmonics,
        cadence=float(pace["cadence"][0] + pace["cadence"][1] * z()),
        stride=float(pace["stride"][0] + pace["stride"][1] * z()),
        step_width=float(0.080 + 0.018 * z()),
        toe_out=float(-mean["foot_progression"] - 3.0),
        toe_off=float(0.612 + 0.010 * z()),
        sway=(base + np.exp(1j * np.angle(base)) * spread) * np.array([1, 0, 1]) / 1000,
        circumduction=float(max(0.0, 0.010 + 0.010 * z())),
        knee_out=float(-2.0 + 4.0 * z()),
        arm_swing=(float(swing * (1 + lopsided)), float(swing * (1 - lopsided))),
        forearm_in=float(12 + 9 * z()),
        lean=float(2.0 + 2.2 * z()),
        stoop=float(0.025 + 0.026 * z()),
        head_forward=float(0.040 + 0.014 * z()),
    )


def vary_gait(gait: Gait, rng: np.random.Generator) -> Gait:
    """Return the gait of one walk: the person's gait with small changes to numbers and curves."""
    pace_cv = load_norms()["pace"]["within_cv"]
    mean, harmonics = {}, {}
    for name, c in curves().items():
        sd = WITHIN_SCALE * c.within_sd
        size = np.abs(c.harmonics) / np.sqrt((np.abs(c.harmonics) ** 2).sum())
        moved = rng.standard_normal(HARMONICS) + 1j * rng.standard_normal(HARMONICS)
        mean[name] = gait.mean[name] + 0.5 * sd * rng.standard_normal()
        harmonics[name] = _keep_parity(name, gait.harmonics[name] + 0.87 * sd * size * moved)
    z = rng.standard_normal(10)
    return replace(
        gait,
        mean=mean,
        harmonics=harmonics,
        cadence=gait.cadence * (1 + pace_cv * z[0]),
        stride=gait.stride * (1 + pace_cv * (0.6 * z[0] + 0.8 * z[1])),  # longer when faster
        step_width=gait.step_width + 0.006 * z[2],
        toe_out=gait.toe_out + 1.0 * z[3],
        arm_swing=tuple(a * float(np.exp(0.08 * z[4 + i])) for i, a in enumerate(gait.arm_swing)),
        lean=gait.lean + 0.6 * z[6],
        stoop=gait.stoop + 0.004 * z[7],
        head_forward=gait.head_forward + 0.004 * z[8],
        forearm_in=gait.forearm_in + 2.0 * z[9],
    )


def _keep_parity(name: str, phasors: np.ndarray) -> np.ndarray:
    """Set the harmonics to zero that a curve shared by both sides cannot have."""
    order = np.arange(1, HARMONICS + 1)
    if name in EVEN_CURVES:
        return np.where(order % 2 == 0, phasors, 0)
    if name in ODD_CURVES:
        return np.where(order % 2 == 1, phasors, 0)
    return phasors
