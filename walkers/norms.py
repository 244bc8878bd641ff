"""Published norms of human bodies and gaits, as the walker draws from them.

``norms.json`` beside this file holds the numbers and names their sources: ANSUR II body measures,
CGM2.3 joint angles (Fourier series), and the spread of those angles between and within 14 walkers
of the CMU mocap database.

The survey is public as means, SDs and SDs of the ratio to stature; that fixes how each measure
correlates with stature (``stature_loading``). How measures hang together beyond stature is not in
those tables and is modelled: girths share one build factor, limb lengths share one leg factor (see
``body.py``).
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
    """A body measure of one sex as ratio to stature: mean, SD, correlation with stature."""

    ratio: float
    sd: float
    stature_loading: float


@dataclass(frozen=True, eq=False)
class Curve:
    """One joint angle over the gait cycle, and how people differ in it (degrees).

    ``harmonics[k]`` is the phasor c of harmonic k + 1: angle(p) = mean + sum of Re(c_k exp(2 pi i k
    p)), with p = 0 at heel strike of the same side. ``amplitude_sd`` and ``timing_sd`` are the
    spread along and across c.
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
    """Return ANSUR II as ratios to stature.

    The variance of the ratio r = x / stature is, to first order in the coefficients of variation,
    cv_r^2 = cv_x^2 + cv_s^2 - 2 rho cv_x cv_s; solved for rho, the correlation of x with stature,
    it gives that
    of r with stature: (rho cv_x - cv_s) / cv_r.
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
    """Return the angle curves; where CMU has no spread, CGM2.3's is shared out by amplitude."""
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


def evaluate(mean: float, harmonics: np.ndarray, phase: np.ndarray) -> np.ndarray:
    """Return the angle at each phase p (cycles, any shape): mean + sum Re(c_k e^(2 pi i k p))."""
    k = np.arange(1, len(harmonics) + 1)
    turns = np.exp(2j * np.pi * phase[..., None] * k)  # (..., K)
    return mean + (turns * harmonics).real.sum(-1)
