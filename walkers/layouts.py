"""The layouts of public gait data sets: folders of a person's sequences, and files of a sequence.

Each layout has the ids, types, views and lists of the real set (docs/datasets.md has the sources),
for a few people. The cameras stand where the view's name says, or anywhere if it is only a number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from walkers.scene import TYPES, VIEWS


class Place(NamedTuple):
    """One sequence of a person.

    Attributes:
        subject, type, view: the folders' names.
        walk: the walk that is filmed, like "nm-01"; sequences with the same walk show the same
            moments.
        angle: of the camera, degrees.
    """

    subject: str
    type: str
    view: str
    walk: str
    angle: int


@dataclass(frozen=True)
class Layout:
    """The layout of one data set.

    Attributes:
        places: (person, is in TRAIN_SET, types, views) -> the person's sequences; persons count
            from 1.
        types: the walk of each type; empty if they depend on the person.
        views: the camera's angle of each view; empty if they depend on the person.
        subjects: how many people by default.
        train: how many of them are in TRAIN_SET by default.
        size: rows and columns of a frame, pixels.
        files: file name of the silhouettes; ``{view}`` is the view and ``{type}`` the type.
        others: further files of a sequence: name -> frames ``(T, H, W)`` to a stand-in array.
        lists: further lists of the partition: name -> the sequence's place to whether it is listed.
    """

    places: Callable[[int, bool, Sequence[str], Sequence[str]], list[Place]]
    types: Mapping[str, str] = field(default_factory=dict)
    views: Mapping[str, int] = field(default_factory=dict)
    subjects: int = 10
    train: int = 6
    size: int = 64
    files: str = "{view}.pkl"
    others: Mapping[str, Callable[[np.ndarray], np.ndarray]] = field(default_factory=dict)
    lists: Mapping[str, Callable[[Place], bool]] = field(default_factory=dict)

    def file(self, place: Place) -> str:
        """Return the file name of a sequence's silhouettes."""
        return self.files.format(view=place.view, type=place.type)


def _grid(
    digits: int, types: Mapping[str, str], views: Mapping[str, int], first: int = 1, **more: Any
) -> Layout:
    """Return the layout of a data set in which everyone has every type at every view."""

    def places(person: int, train: bool, of: Sequence[str], at: Sequence[str]) -> list[Place]:
        subject = f"{person - 1 + first:0{digits}d}"
        return [Place(subject, t, v, types[t], views[v]) for t, v in product(of, at)]

    return Layout(places, types, views, **more)


def _gait3d(person: int, train: bool, *_: Sequence[str]) -> list[Place]:
    """A camera and a video are the type, the number of the sequence is the view."""
    cameras = ((0, 0), (8, 90), (14, 45), (27, 150))  # camera, angle
    return [
        Place(
            f"{person - 1:04d}", f"camid{camera}_videoid{i + 1}", "seq0", f"nm-{i + 1:02d}", angle
        )
        for i, (camera, angle) in enumerate(cameras)
    ]


def _grew(person: int, train: bool, *_: Sequence[str]) -> list[Place]:
    """A video is the view; nobody knows whom the videos of ``probe`` show."""
    subject = f"{person:05d}"
    angles = (0, 90, 45)
    if train:
        own = [(f"{subject}train", "00")] * 3
    else:
        own = [(subject, "01"), (subject, "02"), ("probe", "03")]
    return [
        Place(name, kind, f"v{subject}{'abc'[i]}", f"nm-{i + 1:02d}", angles[i])
        for i, (name, kind) in enumerate(own)
    ]


def _hid(person: int, train: bool, *_: Sequence[str]) -> list[Place]:
    """A video is the type, and the only view is ``default``."""
    subject = f"{person - 1:05d}"
    angles = (0, 90, 45)
    own = [subject] * 3 if train else [subject, subject, "probe"]
    videos = ("00", "01", f"{person:05d}" if not train else "02")
    return [
        Place(name, videos[i], "default", f"nm-{i + 1:02d}", angles[i])
        for i, name in enumerate(own)
    ]


def _angles(angles: Iterable[int]) -> dict[str, int]:
    return {f"{angle:03d}": angle for angle in angles}


def _like_video(shape: Sequence[int]) -> Callable[[np.ndarray], np.ndarray]:
    """Return a stand-in that has one small array of zeros per frame."""
    return lambda frames: np.zeros((len(frames), *shape), np.uint8)


def _ratios(frames: np.ndarray) -> np.ndarray:
    """Return width over height of each silhouette, ``(T,)`` float64."""
    return np.array([f.any(0).sum() / max(1, f.any(1).sum()) for f in frames])


def _shifted(frames: np.ndarray) -> np.ndarray:
    """Return silhouettes that are no camera's: moved by a quarter of the width."""
    return np.roll(frames, frames.shape[-1] // 4, axis=-1)


_CASIA_E = {
    f"H-{scene}-{kind}-1": f"{kind}-{i + 1:02d}"
    for kind in ("nm", "bg", "cl")
    for i, scene in enumerate(("scene1", "scene2", "scene3", "scene3_s"))
}
_CCPG = {
    "U0_D0": "nm-01", "U0_D0_BG": "bg-01", "U0_D3": "cl-01", "U1_D0": "cl-02", "U1_D1": "cl-03",
    "U2_D2": "cl-04", "U3_D3": "nm-02",
}  # fmt: skip
_SUSTECH = {
    "00-nm": "nm-01", "01-nm": "nm-02", "01-bg": "bg-01", "01-cl": "cl-01", "02-cr": "bg-02",
    "02-ub": "bg-03", "03-uf": "cl-02", "03-oc": "nm-03", "04-nt": "nm-04",
}  # fmt: skip
_SUSTECH_VIEWS = _angles(range(0, 360, 45)) | {
    "000-far": 5, "090-near": 95, "180-far": 185, "270-far": 275,
}  # fmt: skip
_CCPG_VIEWS = {"01_0": 0, "01_1": 20, "02_0": 60, "03_0": 90, "04_0": 150}
_OUMVLP = {"00": "nm-01", "01": "nm-02"}
_OUMVLP_VIEWS = _angles([*range(0, 91, 15), *range(180, 271, 15)])
_CASIA_E_VIEWS = _angles([*range(0, 181, 15), 270])
_CASIA_B = {walk: walk for walk in TYPES}

#: A person's files in SUSTech1K, by what they hold: of the sensors at their own rate, and again
#: synchronized. The silhouettes are the camera's aligned ones at their own rate.
_SUSTECH_SENSORS = {
    "LiDAR-PCDs": _like_video((8, 3)),
    "LiDAR-PCDs_depths": _like_video((3, 8, 8)),
    "LiDAR-PCDs_sils": _shifted,
    "Camera-Pose": _like_video((18, 3)),
    "Camera-Ratios-HW": _ratios,
    "Camera-RGB_raw": _like_video((8, 8, 3)),
    "Camera-Sils_aligned": _shifted,
    "Camera-Sils_raw": _shifted,
}
_SUSTECH_SILHOUETTES = "06-{view}-Camera-Sils_aligned.pkl"
_SUSTECH_FILES = {
    f"{number:02d}-{sync}{{view}}-{name}.pkl": stand_in
    for number, (sync, (name, stand_in)) in enumerate(
        product(("", "sync-"), _SUSTECH_SENSORS.items())
    )
}
del _SUSTECH_FILES[_SUSTECH_SILHOUETTES]
_CCPG_FILES = {
    "{view}-ratios.pkl": _ratios,
    "{view}-rgbs.pkl": _like_video((3, 8, 8)),
    "{view}-sils.pkl": _shifted,
}

DEFAULT = "casia-b"
LAYOUTS = {
    DEFAULT: _grid(3, _CASIA_B, _angles(map(int, VIEWS)), subjects=34, train=24),
    "oumvlp": _grid(5, _OUMVLP, _OUMVLP_VIEWS),
    "casia-e": _grid(3, _CASIA_E, _CASIA_E_VIEWS),
    "sustech1k": _grid(
        4, _SUSTECH, _SUSTECH_VIEWS, first=0, files=_SUSTECH_SILHOUETTES, others=_SUSTECH_FILES
    ),
    "ccpg": _grid(3, _CCPG, _CCPG_VIEWS, files="{view}-aligned-sils.pkl", others=_CCPG_FILES),
    "gait3d": Layout(_gait3d, lists={"PROBE_SET": lambda place: "_videoid1" in place.type}),
    "grew": Layout(_grew),
    "hid": Layout(_hid, size=128, files="{type}.pkl"),
}


def layout_of(spec: Mapping[str, Any]) -> Layout:
    """Return the layout of a data set whose manifest this is."""
    return LAYOUTS[spec.get("layout", DEFAULT)]
