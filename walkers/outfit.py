"""Outfits: a person's hair and everyday clothes, and the coat or the bag of one sequence.

No measurements of clothing were found, so thicknesses were chosen by eye. They were then compared
with the silhouettes of CASIA-B: the share of the frame they fill, and their width (see
``tests/test_walkers.py``).
"""

from dataclasses import dataclass, replace

import numpy as np

from walkers.gait import Gait

HAIR = {"male": ("short", "medium"), "female": ("medium", "bob", "long", "ponytail")}
BAGS = ("backpack", "shoulder", "hand")


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
    """

    shirt: float
    sleeve: float
    shirt_length: float
    trousers: float
    hem: float
    skirt: float
    skirt_flare: float
    sole: float


@dataclass(frozen=True)
class Coat:
    """A coat over the clothes, in metres; ``length`` is a place on the leg as in ``Clothes``."""

    girth: float
    sleeve: float
    length: float
    flare: float
    hood: float  # radius of a hood that lies on the neck; 0 for none
    collar: float


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


def draw_outfit(sex: str, rng: np.random.Generator) -> Outfit:
    """Draw a person's hair and everyday clothes."""
    style = str(rng.choice(HAIR[sex], p=(0.75, 0.25) if sex == "male" else (0.2, 0.25, 0.25, 0.3)))
    thickness = {"short": 0.010, "medium": 0.022, "bob": 0.024, "long": 0.022, "ponytail": 0.014}
    hair = Hair(style, float(thickness[style] * rng.uniform(0.5, 1.6)))
    skirted = sex == "female" and rng.random() < 0.3
    loose = rng.uniform(0.0, 1.0)
    clothes = Clothes(
        shirt=float(rng.uniform(0.002, 0.021)),
        sleeve=float(rng.uniform(0.000, 0.013)),
        shirt_length=float(rng.uniform(-0.1, 0.35)),
        trousers=float(0.002 + 0.014 * loose),
        hem=float(0.050 + 0.036 * loose),
        skirt=float(rng.uniform(0.7, 1.5)) if skirted else 0.0,
        skirt_flare=float(rng.uniform(0.0, 0.05)),
        sole=float(rng.uniform(0.01, 0.03)),
    )
    return Outfit(hair, clothes)


def dress(outfit: Outfit, kind: str, rng: np.random.Generator) -> Outfit:
    """Return the outfit of one sequence of a kind ("nm", "bg" or "cl"), with its bag or coat.

    The same clothes hang differently each time, so thicknesses vary by some millimetres.
    """
    z = rng.standard_normal(3)
    worn = outfit.clothes
    outfit = replace(
        outfit,
        clothes=replace(
            worn,
            shirt=max(0.003, worn.shirt + 0.002 * float(z[0])),
            trousers=max(0.003, worn.trousers + 0.0015 * float(z[1])),
            hem=worn.hem + 0.002 * float(z[2]),
        ),
    )
    if kind == "bg":
        return replace(outfit, bag=_draw_bag(rng))
    if kind == "cl":
        return replace(outfit, coat=_draw_coat(rng))
    return outfit


def gait_under_load(gait: Gait, outfit: Outfit) -> Gait:
    """Return the gait with a bag or coat: an arm with a bag swings less, a backpack adds lean."""
    mean, swing = dict(gait.mean), list(gait.arm_swing)
    bag, coat = outfit.bag, outfit.coat
    if bag is not None and bag.kind == "backpack":
        gait = replace(gait, lean=gait.lean + 2.0, head_forward=gait.head_forward + 0.008)
        swing = [0.85 * s for s in swing]
    elif bag is not None:
        arm = 0 if bag.side > 0 else 1
        swing[arm] *= 0.35 if bag.kind == "hand" else 0.6
    if coat is not None:
        mean["shoulder_abduction"] += 120 * coat.sleeve
        swing = [0.93 * s for s in swing]
    return replace(gait, mean=mean, arm_swing=(swing[0], swing[1]))


def _draw_bag(rng: np.random.Generator) -> Bag:
    kind = str(rng.choice(BAGS, p=(0.4, 0.35, 0.25)))
    width, height, thickness = {
        "backpack": (0.29, 0.40, 0.15),
        "shoulder": (0.31, 0.26, 0.11),
        "hand": (0.30, 0.26, 0.11),
    }[kind]
    size = rng.uniform(0.8, 1.2, 3)
    side = 1 if rng.random() < 0.5 else -1
    return Bag(
        kind, side, float(width * size[0]), float(height * size[1]), float(thickness * size[2])
    )


def _draw_coat(rng: np.random.Generator) -> Coat:
    length = rng.choice((rng.uniform(0.2, 0.5), rng.uniform(0.5, 0.9), rng.uniform(0.9, 1.3)))
    return Coat(
        girth=float(rng.uniform(0.016, 0.056)),
        sleeve=float(rng.uniform(0.008, 0.028)),
        length=float(length),
        flare=float(rng.uniform(0.0, 0.05)),
        hood=float(rng.uniform(0.07, 0.10)) if rng.random() < 0.35 else 0.0,
        collar=float(rng.uniform(0.0, 0.035)),
    )
