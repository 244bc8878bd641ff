"""Profiles: the elliptic sections of a dressed trunk, and of a head with hair.

At measured heights the sizes are ANSUR II's. A smooth curve connects them. Cloth and hair are added
to it.
"""

import numpy as np

from walkers.body import Body
from walkers.outfit import Outfit
from walkers.shapes import smooth_profile

# level (0 chin, 1 top); half breadth as share of head breadth; front and back of head length
HEAD = np.array(
    [
        (0.00, 0.30, 0.40, 0.02),
        (0.08, 0.36, 0.44, -0.08),
        (0.22, 0.42, 0.46, -0.30),
        (0.36, 0.47, 0.51, -0.43),
        (0.48, 0.49, 0.47, -0.48),
        (0.66, 0.50, 0.46, -0.50),
        (0.80, 0.46, 0.40, -0.47),
        (0.90, 0.37, 0.28, -0.38),
        (0.97, 0.22, 0.12, -0.24),
        (1.00, 0.08, 0.02, -0.10),
    ]
)
# hair style: share of its thickness at the sides, back and front; level where it ends
HAIR = {
    "short": (0.6, 0.8, 0.5, 0.30),
    "medium": (1.0, 1.0, 0.7, 0.18),
    "bob": (1.3, 1.2, 0.5, -0.10),
    "long": (1.1, 1.0, 0.5, -0.9),
    "ponytail": (0.8, 1.0, 0.5, 0.30),
}
TRUNK_SECTIONS = 22  # sections of the trunk


def trunk_profile(body: Body, outfit: Outfit) -> tuple[np.ndarray, ...]:
    """Return the trunk's S sections as five arrays ``(S,)``.

    They are height above the hip joints, half breadth, half depth and forward shift, all in metres,
    and the share (0 to 1) by which a section moves with the thorax rather than the pelvis.
    """
    m = body.m
    hip, waist = m["trochanterionheight"], m["waistheightomphalion"]
    neck = m["neckcircumference"] / (2 * np.pi)
    top, acromion = m["cervicaleheight"] - hip, m["acromialheight"] - hip - body.slope
    nape = acromion + 0.45 * (top - acromion)
    seat = m["buttockheight"] - hip
    chest, shoulder = m["chestheight"] - hip, m["biacromialbreadth"] / 2
    hips, chests = m["hipbreadth"] / 2, m["chestbreadth"] / 2
    waist_breadth = m["waistbreadth"] / 2
    waist_depth = m["waistdepth"] / 2 + body.belly / 2
    back, front = m["buttockdepth"] / 2, m["chestdepth"] / 2
    crotch = min(m["crotchheight"] - hip, seat - 0.03)
    middle = 0.5 * (seat + waist - hip)
    knots = np.array(
        [  # height, half breadth, half depth, forward shift
            (crotch, 0.62 * hips, 0.6 * back, 0.0),
            (seat, hips + 0.006, back + 0.005 + body.seat / 2, -0.012 - body.seat / 2),
            (middle, 0.5 * (hips + waist_breadth) + 0.008, 0.5 * (back + waist_depth), 0.0),
            (waist - hip, waist_breadth, waist_depth, 0.012 + body.belly / 2),
            (0.5 * (waist - hip + chest), 0.95 * chests, 0.94 * front, 0.004),
            (chest, chests + 0.010, front, 0.0),
            (chest + 0.5 * (acromion - chest), chests + 0.018, 0.88 * front, -0.008),
            (acromion - 0.030, shoulder - 0.002, 0.68 * front, -0.012),
            (acromion + 0.004, shoulder - 0.032, 0.58 * front, -0.014),
            (nape, 0.39 * shoulder + 0.3 * neck, 0.40 * front, -0.014),
            (top + 0.020, neck + 0.002, 0.92 * neck, -0.008),
        ]
    )  # fmt: skip
    height = np.linspace(crotch, top + 0.026, TRUNK_SECTIONS)
    breadth, depth, ahead = smooth_profile(knots, height).T
    clothes, coat = outfit.clothes, outfit.coat
    slack = clothes.shirt + (coat.girth if coat else 0.0)
    below = 0.6 if coat else 0.3
    cloth = np.interp(height, [acromion - 0.02, top], [slack, 0.3 * slack])
    fullness = np.interp(
        height, [seat, waist - hip, chest], [below, 1.1, 0.85]
    )  # cloth hangs loose at the waist
    upper = np.clip((height - middle) / (chest - middle), 0, 1)
    return height, breadth + cloth * fullness, depth + cloth * fullness, ahead, upper


def head_profile(body: Body, outfit: Outfit) -> list[tuple[np.ndarray, ...]]:
    """Return stacks of S sections: the head and, if it is long, the hair below the chin.

    A stack is four arrays ``(S,)`` in metres: height above the head's pivot, half breadth, half
    depth and forward shift.
    """
    m, s, hair = body.m, body.stature, outfit.hair
    sides, back, front, end = HAIR[hair.style]
    level = np.concatenate([np.linspace(0, 0.85, 11), [0.9, 0.94, 0.97, 1.0]])
    wide, ahead, behind = smooth_profile(HEAD, level).T
    wide = wide * m["headbreadth"]
    ahead = 0.94 * ahead * m["headlength"] * np.where(level < 0.5, body.face, 1.0)
    behind = 0.94 * behind * m["headlength"]
    on = np.clip((level - max(end, 0.0)) / 0.12, 0, 1)  # where hair covers back and sides
    above = np.clip((level - 0.62) / 0.15, 0, 1)  # where hair covers the front
    wide = wide + hair.thickness * sides * on
    behind = behind - hair.thickness * back * on
    ahead = ahead + hair.thickness * front * above
    height = (-0.045 + 0.130 * level) * s
    height = height + hair.thickness * above * level**4
    stacks = [(height, wide, (ahead - behind) / 2, (ahead + behind) / 2 + 0.012)]
    if end < 0:  # hair hangs down behind, to below the chin
        low = np.linspace(end, 0.6, 7)
        fall = (-0.045 + 0.130 * low) * s
        half = np.full(7, 0.46 * m["headbreadth"] + hair.thickness) * np.linspace(0.85, 1.0, 7)
        half_depth = np.linspace(0.20, 0.27, 7) * m["headlength"] + 0.5 * hair.thickness
        stacks.append((fall, half, half_depth, np.full(7, -0.27 * m["headlength"])))
    return stacks
