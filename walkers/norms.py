"""Published norms of human bodies and gaits, which the walkers are drawn from.

``norms.json`` beside this file holds the numbers and names their sources: body measures of ANSUR
II, joint angles of CGM2.3 (Fourier series), and the spread of those angles between and within 14
walkers of the CMU mocap database.

The survey publishes means, SDs, and SDs of the ratio to stature. These determine how each measure
correlates with stature (``stature_loading``). The tables do not say how measures correlate beyond
stature. That part is modelled: girths share one build factor, limb lengths share one factor per
limb (see ``body.py``).
"""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

HARMONICS = 5
SEXES = ("male", "female")


@dataclass(frozen=True)
class Measure:
    """A body measure of one sex as ratio to stature.

    Attributes:
        ratio: mean of the ratio.
        sd: standard deviation of the ratio.
        stature_loading: correlation of the ratio with stature.
    """

    ratio: float
    sd: float
    stature_loading: float


@dataclass(frozen=True, eq=False)
class Curve:
    """One joint angle over the gait cycle, and how people differ in it.

    angle(p) = mean + sum over k of Re(c_k exp(2 pi i k p)), with p = 0 at heel strike of the same
    side. K is ``HARMONICS``.

    Attributes:
        mean: degrees.
        harmonics: ``(K,)`` phasors c_1 to c_K, degrees.
        offset_sd: SD of the mean between people, degrees.
        amplitude_sd: ``(K,)`` SD between people along c_k, degrees.
        timing_sd: ``(K,)`` SD between people across c_k, degrees.
        within_sd: SD between one person's walks, degrees.
    """

    mean: float
    harmonics: np.ndarray
    offset_sd: float
    amplitude_sd: np.ndarray
    timing_sd: np.ndarray
    within_sd: float


@cache
def load_norms() -> dict:
    """Return the content of ``norms.json``."""
    return json.loads(Path(__file__).with_name("norms.json").read_text())


@cache
def measures(sex: str) -> dict[str, Measure]:
    """Return the measures of ANSUR II by name, as ratios to stature.

    The survey has no correlation of a measure x with stature s. It has the coefficients of
    variation cv_x, cv_s and cv_r, with r = x / s. To first order in them,
    cv_r^2 = cv_x^2 + cv_s^2 - 2 rho cv_x cv_s. Solving for rho gives the correlation of x with s.
    The correlation of r with s is then (rho cv_x - cv_s) / cv_r.
    """
    table = load_norms()["body"]
    stature, stature_sd, _ = table["stature"][sex]
    cv_s = stature_sd / stature
    found = {}
    for name, values in table.items():
        if name in ("stature", "weightkg"):
            continue
        mean, sd, ratio_sd = values[sex]
        ratio = mean / stature
        cv_x, cv_r = sd / mean, ratio_sd / ratio
        rho = (cv_x**2 + cv_s**2 - cv_r**2) / (2 * cv_x * cv_s)
        loading = float(np.clip((rho * cv_x - cv_s) / cv_r, -0.9, 0.9))
        found[name] = Measure(ratio, ratio_sd, loading)
    return found


@cache
def curves() -> dict[str, Curve]:
    """Return the angle curves by name.

    Where CMU has no spread, CGM2.3's is divided among the harmonics by their amplitude.
    """
    found = {}
    for name, c in load_norms()["curves"].items():
        phasors = np.array([a - 1j * b for a, b in c["harmonics"]])
        if "offset_sd" in c:
            spread = [np.array(c[k]) for k in ("amplitude_sd", "timing_sd")]
            found[name] = Curve(c["mean"], phasors, c["offset_sd"], *spread, c["within_sd"])
        else:
            share = 0.2 * np.abs(phasors)  # people differ by about a fifth of each harmonic
            found[name] = Curve(
                c["mean"], phasors, 0.6 * c["cgm23_sd"], share, share, 0.25 * c["cgm23_sd"]
            )
    return found


def fourier_series(mean: float, harmonics: np.ndarray, phase: np.ndarray) -> np.ndarray:
    """Return the series mean + sum Re(c_k exp(2 pi i k p)) at each phase p.

    Args:
        mean: in the unit of the result.
        harmonics: ``(K,)`` phasors c_k, k from 1.
        phase: cycles, any shape.

    Returns:
        The shape of ``phase``.
    """
    k = np.arange(1, len(harmonics) + 1)
    turns = np.exp(2j * np.pi * phase[..., None] * k)  # (..., K)
    return mean + (turns * harmonics).real.sum(-1)
