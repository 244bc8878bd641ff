"""Bodies: one person's proportions, from ANSUR II shifted to the students of CASIA-B.

Stature is drawn per sex. Every other measure is a ratio to stature, with the survey's mean and SD.
Its deviation from the mean is the sum of up to four parts:

- the survey's own correlation with stature;
- a build factor shared by all girths, breadths and depths (strong at the waist, weak in bones);
- a factor of its limb: one shared by the heights of leg landmarks (long legs mean a short trunk),
  one by the lengths of the arm, one by the heights of trunk landmarks;
- a part of its own.

American soldiers are heavier than Chinese students. So the survey's girths, breadths and depths are
scaled by the square root of weight per stature, and by less where bone decides the measure.
"""

from dataclasses import dataclass

import numpy as np

from walkers.norms import SEXES, Measure, load_norms, measures

SHARE_OF_WOMEN = 0.25  # 31 of CASIA-B's 124 subjects
SOLE = 0.022  # thickness of the shoe under the foot, metres

# name: (loading on the build factor, exponent of the shift from soldiers' to students' weight)
BUILD = {
    "neckcircumference": (0.75, 0.7),
    "biacromialbreadth": (0.25, 0.15),
    "chestbreadth": (0.75, 0.7),
    "chestdepth": (0.85, 0.9),
    "waistbreadth": (0.92, 1.0),
    "waistdepth": (0.92, 1.1),
    "hipbreadth": (0.8, 0.6),
    "buttockdepth": (0.88, 0.9),
    "thighcircumference": (0.88, 0.9),
    "lowerthighcircumference": (0.85, 0.8),
    "calfcircumference": (0.78, 0.8),
    "anklecircumference": (0.6, 0.6),
    "bicepscircumferenceflexed": (0.85, 1.0),
    "forearmcircumferenceflexed": (0.8, 0.8),
    "wristcircumference": (0.6, 0.5),
}
# name: loading on the factor of its limb
LEG = {
    "trochanterionheight": 0.9,
    "crotchheight": 0.9,
    "buttockheight": 0.88,
    "tibialheight": 0.8,
    "waistheightomphalion": 0.65,
    "lateralmalleolusheight": 0.3,
}
ARM = {"acromionradialelength": 0.7, "radialestylionlength": 0.7, "handlength": 0.6}
TRUNK = {"acromialheight": 0.75, "cervicaleheight": 0.75, "chestheight": 0.65}


@dataclass(frozen=True)
class Body:
    """One person's measures and personal features of shape, in metres.

    Attributes:
        sex: "male" or "female".
        stature: metres, barefoot.
        m: the measures by their ANSUR II names, metres.
        belly: how far the belly extends forward beyond the measured waist depth, metres.
        seat: how far the buttocks extend backward beyond the measured depth, metres.
        slope: how far the shoulders lie below the measured height, metres.
        face: scale of the front of the head's lower half (nose and chin).
        foot_breadth_scale: scale of the foot's breadth.
    """

    sex: str
    stature: float
    m: dict[str, float]
    belly: float
    seat: float
    slope: float
    face: float
    foot_breadth_scale: float

    @property
    def thigh(self) -> float:
        """Distance from hip joint to knee joint, metres."""
        return self.m["trochanterionheight"] - self.m["tibialheight"]

    @property
    def shank(self) -> float:
        """Distance from knee joint to ankle joint, metres."""
        return self.m["tibialheight"] - self.m["lateralmalleolusheight"]

    @property
    def ankle_height(self) -> float:
        """Height of the ankle joint above the ground in shoes, metres."""
        return self.m["lateralmalleolusheight"] + SOLE

    @property
    def hip_half(self) -> float:
        """Half the distance between the hip joints (about a quarter of the hip breadth), metres."""
        return 0.26 * self.m["hipbreadth"]


def draw_body(rng: np.random.Generator) -> Body:
    """Draw a person's body."""
    sex = SEXES[int(rng.random() < SHARE_OF_WOMEN)]
    students = load_norms()["students"][sex]
    soldiers = load_norms()["body"]
    z = np.clip(rng.standard_normal(6), -2.2, 2.2)
    z_stature, z_build, z_leg, z_arm, z_trunk, _ = z
    stature_mean, stature_sd = students["stature"]
    stature = stature_mean + stature_sd * z_stature
    weight, _, _ = soldiers["weightkg"][sex]
    lightness = np.sqrt(students["weight"][0] / stature_mean / weight * soldiers["stature"][sex][0])
    m = {}
    for name, measure in measures(sex).items():
        build, shifted = BUILD.get(name, (0.0, 0.0))
        z_limb, limb = 0.0, 0.0
        for table, factor in ((LEG, z_leg), (ARM, z_arm), (TRUNK, z_trunk)):
            if name in table:
                z_limb, limb = factor, table[name]
        own = np.clip(rng.standard_normal(), -2, 2)
        deviation = _deviation(measure, z_stature, z_build, build, z_limb, limb, own)
        ratio = measure.ratio + measure.sd * deviation
        m[name] = float(stature * ratio * lightness**shifted)
    return Body(
        sex,
        float(stature),
        m,
        belly=float(max(0.0, 0.012 * z_build + 0.008 * rng.standard_normal())),
        seat=float(np.clip(rng.normal(0.008, 0.008), -0.005, 0.025)),
        slope=float(rng.normal(0.022, 0.032)),
        face=float(rng.normal(1.0, 0.06)),
        foot_breadth_scale=float(rng.normal(1.0, 0.05)),
    )


def _deviation(
    measure: Measure,
    z_stature: float,
    z_build: float,
    build: float,
    z_limb: float,
    limb: float,
    own: float,
) -> float:
    """Return a measure's deviation, of unit variance.

    Stature explains a part of it, the factors a part of the rest, ``own`` what remains.
    """
    beyond_stature = np.sqrt(1 - measure.stature_loading**2)
    rest = np.sqrt(max(0.0, 1 - build**2 - limb**2))
    return measure.stature_loading * z_stature + beyond_stature * (
        build * z_build + limb * z_limb + rest * own
    )
