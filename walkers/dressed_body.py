"""A dressed body in a pose, as polygons in one camera's image.

Trunk and head are stacks of elliptic sections. Limbs are round, with a radius that changes along
the limb. Feet and bags are convex hulls. Skirts and coat tails are drawn around both legs. Body
sizes are ANSUR II's, and cloth is added to them.
"""

import numpy as np

from walkers.body import Body
from walkers.motion import Pose
from walkers.outfit import Bag, Outfit
from walkers.profiles import head_profile, trunk_profile
from walkers.shapes import Camera, balls, drape, limb, stack

DRAPE_SECTIONS = 8  # sections of a skirt
#: What a camera tells from the wall, each by its own contrast.
MATERIALS = ("skin", "hair", "top", "coat", "trousers", "shoes", "bag")


class DressedBody:
    """One person in one outfit.

    ``outlines`` and ``hulls`` return its polygons for a pose and a camera.
    """

    def __init__(self, body: Body, outfit: Outfit):
        self.body, self.outfit = body, outfit
        self._trunk = trunk_profile(body, outfit)
        self._head = head_profile(body, outfit)
        m, clothes, coat = body.m, outfit.clothes, outfit.coat
        sleeve = clothes.sleeve + (coat.sleeve if coat else 0.0)
        r = {n: m[n] / (2 * np.pi) for n in m if n.endswith(("circumference", "flexed"))}
        thigh, knee = 0.94 * r["thighcircumference"], 0.97 * r["lowerthighcircumference"]
        calf, ankle = r["calfcircumference"], r["anklecircumference"]
        self.thigh = np.array([0.97, 1.0, 0.95, 0.84, 0.70, 0.0]) * thigh
        self.thigh += np.array([0.0, 0.0, 0.0, 0.06, 0.25, 1.0]) * knee
        self.shank = np.array([0.97 * knee, 0.98 * calf, calf, 0.88 * calf, ankle * 1.12, ankle])
        if not clothes.skirt:
            knees = clothes.trousers + 0.012
            self.thigh = self.thigh + np.linspace(0, knees, 6)
            trouser_leg = np.linspace(knee + knees, clothes.hem, 6)
            self.shank = np.maximum(self.shank + 0.5 * clothes.trousers, trouser_leg)
        arm, fore = 0.94 * r["bicepscircumferenceflexed"], r["forearmcircumferenceflexed"]
        self.upper = np.array([1.02, 1.04, 0.98, 0.93, 0.86]) * arm + sleeve
        self.fore = np.array([0.93, 1.0, 0.93, 0.78, 0.0]) * fore + sleeve
        self.fore[-1] = 1.05 * r["wristcircumference"] + 0.8 * sleeve
        self.hand = np.array([0.62, 0.86, 0.80, 0.45]) * m["handbreadth"] / 2
        self.neck = np.array([0.97, 0.88, 0.90]) * r["neckcircumference"]
        collar = coat.collar if coat else clothes.collar
        self.neck = self.neck + collar * np.array([1.0, 1.0, 0.3])

    def outlines(self, pose: Pose, camera: Camera) -> list[tuple[str, np.ndarray]]:
        """Return materials and polygons ``(T, K, 2)`` in pixels, the one in front last.

        They and ``hulls`` together are the person.
        """
        j, top = pose.joint, "coat" if self.outfit.coat else "top"
        parts = [("skin", limb(camera, j("neck"), j("head"), self.neck))]
        for s in ("l", "r"):
            parts.append(("skin", limb(camera, j(f"wrist_{s}"), j(f"fingers_{s}"), self.hand)))
            parts.append(("trousers", limb(camera, j(f"hip_{s}"), j(f"knee_{s}"), self.thigh)))
            parts.append(("trousers", limb(camera, j(f"knee_{s}"), j(f"ankle_{s}"), self.shank)))
            parts.append((top, limb(camera, j(f"shoulder_{s}"), j(f"elbow_{s}"), self.upper)))
            parts.append((top, limb(camera, j(f"elbow_{s}"), j(f"wrist_{s}"), self.fore)))
        parts.append((top, self._trunk_outline(pose, camera)))
        parts += [("hair", outline) for outline in self._head_outlines(pose, camera)]
        clothes, coat = self.outfit.clothes, self.outfit.coat
        if clothes.skirt:
            skirt = self._drape(pose, camera, clothes.skirt, 0.008, clothes.skirt_flare)
            parts.append(("trousers", skirt))
        if clothes.shirt_length > 0:
            hem = self._drape(pose, camera, clothes.shirt_length, 0.006 + 0.4 * clothes.shirt, 0.0)
            parts.append(("top", hem))
        if coat:
            cloth = clothes.shirt + 0.85 * coat.girth
            parts.append((top, self._drape(pose, camera, coat.length, cloth, coat.flare)))
        if hood := coat.hood if coat else clothes.hood:
            thorax = pose.axes_of("thorax")
            behind = j("neck") - 0.045 * thorax[:, 0] - 0.08 * thorax[:, 2]
            side = 0.05 * thorax[:, 1]
            size = np.full(3, 0.8 * hood)
            parts.append((top, limb(camera, behind - side, behind + side, size)))
        if self.outfit.hair.style == "ponytail":
            head = pose.axes_of("head")
            root = j("head") - head[:, 0] * 0.55 * self.body.m["headlength"] + head[:, 2] * 0.03
            tip = root - head[:, 2] * 0.17 - head[:, 0] * 0.035
            tail = limb(camera, root, tip, np.array([0.022, 0.034, 0.030, 0.014]))
            parts.append(("hair", tail))
        return parts

    def hulls(self, pose: Pose, camera: Camera) -> list[tuple[str, np.ndarray]]:
        """Return materials and points ``(T, K, 2)`` in pixels: convex hulls are feet and bag."""
        sets = [("shoes", self._foot(pose, camera, s)) for s in ("l", "r")]
        if self.outfit.bag:
            sets.append(("bag", self._bag(self.outfit.bag, pose, camera)))
        return sets

    def _trunk_outline(self, pose: Pose, camera: Camera) -> np.ndarray:
        height, breadth, depth, ahead, upper = self._trunk
        hips = pose.axes_of("pelvis")[:, None]  # (T, 1, 3, 3)
        thorax = pose.axes_of("thorax")[:, None]  # (T, 1, 3, 3)
        part = upper[:, None, None]  # 0 moves with the pelvis, 1 with the thorax
        axes = hips * (1 - part) + thorax * part  # (T, S, 3, 3)
        rise = self.body.m["waistheightomphalion"] - self.body.m["trochanterionheight"]
        base = np.where(
            (height < rise)[:, None], pose.joint("pelvis")[:, None], pose.joint("waist")[:, None]
        )
        above = np.where(height < rise, height, height - rise)[:, None]
        centres = base + axes[:, :, 2] * above + axes[:, :, 0] * ahead[:, None]
        neck = pose.joint("neck") - pose.joint("waist")
        stoop = (neck * pose.axes_of("thorax")[:, 0]).sum(1)  # (T,) bends the upper back
        bend = np.clip((height - rise) / (height[-1] - rise), 0, 1) ** 1.5
        centres = centres + thorax[:, :, 0] * (stoop[:, None] * bend)[..., None]
        return stack(camera, centres, axes[:, :, 1], axes[:, :, 0], breadth, depth)

    def _head_outlines(self, pose: Pose, camera: Camera) -> list[np.ndarray]:
        head = pose.axes_of("head")[:, None]  # (T, 1, 3, 3)
        found = []
        for height, breadth, depth, ahead in self._head:
            centres = (
                pose.joint("head")[:, None]
                + head[:, :, 2] * height[:, None]
                + head[:, :, 0] * ahead[:, None]
            )
            found.append(stack(camera, centres, head[:, :, 1], head[:, :, 0], breadth, depth))
        return found

    def _drape(
        self, pose: Pose, camera: Camera, length: float, cloth: float, flare: float
    ) -> np.ndarray:
        share = np.linspace(0.0, length, DRAPE_SECTIONS)
        legs = []
        for s in ("l", "r"):
            hip, knee, ankle = (pose.joint(f"{n}_{s}")[:, None] for n in ("hip", "knee", "ankle"))
            a, b = np.clip(share, 0, 1)[:, None], np.clip(share - 1, 0, 1)[:, None]
            legs.append(hip * (1 - a) + knee * (a - b) + ankle * b)
        radii = np.interp(share, np.linspace(0, 1, 6), self.thigh)
        below = np.interp(share - 1, np.linspace(0, 1, 6), self.shank)
        radii = np.where(share <= 1, radii, below) + cloth
        return drape(camera, *legs, radii, flare * share)

    def _foot(self, pose: Pose, camera: Camera, side: str) -> np.ndarray:
        ankle, heel, ball, toe = (
            pose.joint(f"{n}_{side}") for n in ("ankle", "heel", "ball", "toe")
        )
        along = ball - heel
        across = np.stack([-along[:, 1], along[:, 0], 0 * along[:, 0]], axis=1)
        across = across / np.sqrt((across**2).sum(1, keepdims=True))
        wide = self.body.foot_breadth_scale * self.body.m["footbreadthhorizontal"] / 2 - 0.020
        tip = toe - ball
        tip = tip / np.sqrt((tip**2).sum(1, keepdims=True)) * (self.outfit.clothes.sole - 0.040)
        up = np.array([0.0, 0.0, 1.0])
        centres = [
            ankle,
            heel + 0.030 * up + 0.10 * along,
            ball + across * wide + 0.024 * up,
            ball - across * wide + 0.024 * up,
            toe + tip + 0.3 * across * wide + 0.022 * up,
            toe + tip - 0.3 * across * wide + 0.022 * up,
        ]
        radii = np.array([0.043, 0.030, 0.024, 0.024, 0.022, 0.022])
        return balls(camera, np.stack(centres, axis=1), radii)

    def _bag(self, bag: Bag, pose: Pose, camera: Camera) -> np.ndarray:
        m, round_off = self.body.m, 0.035
        coat = self.outfit.coat.girth if self.outfit.coat else 0.0
        size = np.array([bag.thickness, bag.width, bag.height])  # forward, left, up
        if bag.kind == "backpack":
            axes, base = pose.axes_of("thorax"), pose.joint("waist")
            middle = np.array([-0.5 * m["chestdepth"] - 0.5 * bag.thickness - coat + 0.01, 0, 0])
            middle[2] = 0.72 * (m["acromialheight"] - m["waistheightomphalion"]) - 0.3 * bag.height
        elif bag.kind == "shoulder":
            axes, base = pose.axes_of("pelvis"), pose.joint("waist")
            size = size[[1, 0, 2]]
            middle = np.array([-0.03, bag.side * (0.5 * m["hipbreadth"] + 0.5 * size[1]), -0.13])
        else:
            axes = np.broadcast_to(np.eye(3), (len(pose.joints), 3, 3))
            base = pose.joint("fingers_l" if bag.side > 0 else "fingers_r")
            size = size[[1, 0, 2]]
            middle = np.array([0, 0, -0.04 - 0.5 * bag.height])
        inner = np.maximum(size / 2 - round_off, 0.005)
        corners = np.array([(i, k, n) for i in (-1, 1) for k in (-1, 1) for n in (-1, 1)]) * inner
        if bag.kind == "hand":  # its handles meet in the hand
            corners = np.concatenate([corners, [-middle]])
        offsets = corners + middle  # (S, 3)
        centres = base[:, None] + sum(axes[:, None, i] * offsets[:, i, None] for i in range(3))
        radii = np.full(len(corners), round_off)
        if bag.kind == "hand":
            radii[-1] = 0.01
        return balls(camera, centres, radii)
