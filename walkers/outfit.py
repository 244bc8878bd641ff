"""Outfits: a person's hair and everyday clothes, and the coat or the bag of one sequence.

No measurements of clothing were found, so thicknesses were chosen by eye. They were then compared
with the silhouettes of CASIA-B: the share of the frame they fill, and their width (see
``tests/test_walkers.py``).
"""

from dataclasses import dataclass, replace

import numpy as np

from walkers.gait import Gait
from walkers.styles import Style

HAIR = {"male": ("short", "medium"), "female": ("medium", "bob", "long", "ponytail")}
BAGS = ("backpack", "shoulder", "hand")
THICKNESS = (0.35, 0.95)  # beta distribution of tops, from a shirt (0) to a padded jacket (1)


@dataclass(frozen=True)
class Hair:
    """Style ("short", "medium", "bob", "long", "ponytail") and thickness in metres."""

    style: str
    thickness: float


@dataclass(frozen=True)
class Clothes:
    """Everyday clothes.

    Thicknesses are metres that are added to radii. Lengths are places on the leg: 0 is the hip, 1
    the knee, 2 the ankle.

    Attributes:
        shirt, sleeve: thickness around the trunk and the arms.
        shirt_length: where the shirt ends below the hip joint.
        trousers: thickness around thigh and shank.
        hem: radius of a trouser leg at the ankle, metres.
        skirt: where the skirt ends; 0 for trousers.
        skirt_flare: metres by which the skirt widens from hip to knee.
        sole: how much longer the shoe is than the foot, metres.
        hood, collar: radius of a hood on the neck (0 for none), and thickness around the neck.
        arms_out: by how much the clothes push the arms from the body, degrees.
    """

    shirt: float
    sleeve: float
    shirt_length: float
    trousers: float
    hem: float
    skirt: float
    skirt_flare: float
    sole: float
    hood: float
    collar: float
    arms_out: float


@dataclass(frozen=True)
class Coat:
    """A coat, and the trousers worn with it, in metres; ``length`` is as in ``Clothes``."""

    girth: float
    sleeve: float
    length: float
    flare: float
    hood: float  # radius of a hood that lies on the neck; 0 for none
    collar: float
    trousers: float
    hem: float
    hair: float  # scale of the hair's thickness, as collar or hat leave it
    arms_out: float  # degrees
    lean: float  # degrees
    stoop: float
    pace: float  # scale of stride and cadence


@dataclass(frozen=True)
class Bag:
    """A bag.

    Attributes:
        kind: one of ``BAGS``.
        side: +1 left, -1 right.
        width, height, thickness: metres.
    """

    kind: str
    side: int
    width: float
    height: float
    thickness: float


@dataclass(frozen=True)
class Outfit:
    """What a person wears and carries in one sequence."""

    hair: Hair
    clothes: Clothes
    coat: Coat | None = None
    bag: Bag | None = None


def draw_outfit(sex: str, rng: np.random.Generator, style: Style) -> Outfit:
    """Draw a person's hair and everyday clothes: a shirt, or a jacket of any thickness."""
    cut = str(rng.choice(HAIR[sex], p=(0.75, 0.25) if sex == "male" else (0.2, 0.25, 0.25, 0.3)))
    thickness = {"short": 0.010, "medium": 0.022, "bob": 0.024, "long": 0.022, "ponytail": 0.014}
    hair = Hair(cut, float(thickness[cut] * rng.uniform(0.5, 1.6)))
    skirted = sex == "female" and rng.random() < 0.1
    loose, thick = rng.uniform(0.0, 1.0), style.cloth * rng.beta(*THICKNESS)
    clothes = Clothes(
        shirt=float(0.080 * thick),
        sleeve=float(-0.002 + 0.048 * thick + rng.uniform(-0.004, 0.004)),
        shirt_length=float(rng.uniform(-0.1, 0.35)),
        trousers=float(style.cloth * (-0.004 + 0.012 * loose)),
        hem=float(0.046 + 0.028 * loose),
        skirt=float(rng.uniform(0.7, 1.5)) if skirted else 0.0,
        skirt_flare=float(rng.uniform(0.0, 0.05)),
        sole=float(rng.uniform(-0.03, 0.03)),
        hood=float(rng.uniform(0.05, 0.10)) if rng.random() < 0.25 else 0.0,
        collar=float(rng.uniform(0.0, 0.03) * thick),
        arms_out=float(9 * thick),
    )
    return Outfit(hair, clothes)


def dress(outfit: Outfit, load: Bag | Coat | None, rng: np.random.Generator) -> Outfit:
    """Return the outfit of one walk: a person's everyday clothes with a bag, or under a coat.

    The same clothes hang differently each time, so thicknesses vary by some millimetres. A coat is
    worn instead of a jacket, and with other trousers.
    """
    z = [float(x) for x in rng.standard_normal(5)]
    worn = outfit.clothes
    clothes = replace(
        worn,
        shirt=max(0.000, worn.shirt + 0.004 * z[0]),
        sleeve=max(-0.004, worn.sleeve + 0.003 * z[1]),
        trousers=max(-0.004, worn.trousers + 0.002 * z[2]),
        hem=worn.hem + 0.003 * z[3],
        shirt_length=worn.shirt_length + 0.05 * z[4],
    )
    if not isinstance(load, Coat):
        return Outfit(outfit.hair, clothes, bag=load)
    shirt, sleeve = min(clothes.shirt, 0.008), min(clothes.sleeve, 0.003)
    clothes = replace(clothes, shirt=shirt, sleeve=sleeve, trousers=load.trousers, hem=load.hem)
    hair = replace(outfit.hair, thickness=outfit.hair.thickness * load.hair)
    return Outfit(hair, clothes, coat=load)


def gait_under_load(gait: Gait, outfit: Outfit) -> Gait:
    """Return the gait with a bag or coat: an arm with a bag swings less, a backpack adds lean."""
    mean, swing = dict(gait.mean), list(gait.arm_swing)
    bag, coat = outfit.bag, outfit.coat
    mean["shoulder_abduction"] += 0 if coat else outfit.clothes.arms_out
    if bag is not None and bag.kind == "backpack":
        gait = replace(gait, lean=gait.lean + 2.0, head_forward=gait.head_forward + 0.008)
        swing = [0.85 * s for s in swing]
    elif bag is not None:
        arm = 0 if bag.side > 0 else 1
        swing[arm] *= 0.35 if bag.kind == "hand" else 0.6
    if coat is not None:
        mean["shoulder_abduction"] += coat.arms_out
        gait = replace(
            gait,
            lean=gait.lean + coat.lean,
            stoop=gait.stoop + coat.stoop,
            stride=gait.stride * coat.pace,
            cadence=gait.cadence * coat.pace,
        )
        swing = [0.93 * s for s in swing]
    return replace(gait, mean=mean, arm_swing=(swing[0], swing[1]))


def draw_load(kind: str, rng: np.random.Generator, style: Style) -> Bag | Coat | None:
    """Draw what a kind of walk is about: a bag ("bg"), a coat ("cl") or nothing ("nm")."""
    if kind == "nm":
        return None
    return _draw_bag(rng) if kind == "bg" else _draw_coat(rng, style)


def _draw_bag(rng: np.random.Generator) -> Bag:
    kind = str(rng.choice(BAGS, p=(0.08, 0.80, 0.12)))
    width, height, thickness = {
        "backpack": (0.29, 0.40, 0.15),
        "shoulder": (0.36, 0.28, 0.10),
        "hand": (0.30, 0.23, 0.11),
    }[kind]
    size = rng.uniform(0.8, 1.2, 3)
    side = 1 if rng.random() < 0.5 else -1
    return Bag(
        kind, side, float(width * size[0]), float(height * size[1]), float(thickness * size[2])
    )


def _draw_coat(rng: np.random.Generator, style: Style) -> Coat:
    """Draw a coat: mostly a jacket that ends at the hips, at times a long coat."""
    longer = rng.uniform(0.3, 1.0) if rng.random() < 0.15 else rng.uniform(0.05, 0.3)
    thick, loose = style.cloth * rng.beta(0.9, 1.2), rng.uniform(0.0, 1.0)
    return Coat(
        girth=float(0.024 + 0.060 * thick),
        sleeve=float(0.006 + 0.050 * thick),
        length=float(longer),
        flare=float(rng.uniform(0.0, 0.02)),
        hood=float(rng.uniform(0.06, 0.18)) if rng.random() < 0.5 else 0.0,
        collar=float(rng.uniform(-0.01, 0.06)),
        trousers=float(style.cloth * (-0.004 + 0.012 * loose)),
        hem=float(0.046 + 0.028 * loose),
        hair=float(rng.uniform(0.3, 1.2)),
        arms_out=float(6 * thick + rng.normal(0, 6)),
        lean=float(rng.normal(0, 1.5)),
        stoop=float(rng.normal(0, 0.015)),
        pace=float(np.exp(rng.normal(0, 0.03))),
    )
