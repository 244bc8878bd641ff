"""Layouts of raw masks: which subject, type and view a file's folders say.

| layout | folders of a frame |
|---|---|
| ``id/type/view`` | CASIA-B's: ``001/nm-01/090`` |
| ``oumvlp`` | OU-MVLP's raw one: ``Silhouette_090-00/00001`` is subject 00001, type 00, view 090 |
| ``grew`` | GREW's: ``train/<id>/<video>``, ``test/gallery/<id>/<video>``, ``test/probe/<video>`` |
| ``id/seq`` | ``<id>/<walk>``: the type is the walk, the view is ``default``, as in HID |
| ``walk`` | one folder a walk: the subject is the walk, type ``00``, view ``default`` |
| ``type/view`` | one subject of CASIA-B's, ``nm-01/090``: the subject is the set's name |

GREW's names become those of OpenGait's ``datasets/GREW``: ``<id>train/00/<video>``, ``<id>/01`` and
``02`` for the gallery's videos in the order of their names, and ``probe/03/<video>``.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

Key = tuple[str, str, str]  # subject, type, view

FOLDER_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*")
VIEW = "default"  # of walks that have no other
GALLERY = "gallery"  # in place of a type, until the videos of a subject are counted
_OUMVLP = re.compile(r"Silhouette_([0-9]{3})-([0-9]{2})")
_TYPE_VIEW = re.compile(r"(nm|bg|cl)-[0-9]{2}/[0-9]{3}")  # CASIA-B's


def _oumvlp(folders: Sequence[str]) -> Key | None:
    if len(folders) < 2 or not (found := _OUMVLP.fullmatch(folders[-2])):
        return None
    return folders[-1], found[2], found[1]


def _grew(folders: Sequence[str]) -> Key | None:
    *_, half, subject, video = ("", "", "", *folders)
    if half == "train":
        return f"{subject}train", "00", video
    if half == "gallery":
        return subject, GALLERY, video
    return ("probe", "03", video) if subject == "probe" else None


#: By name: from a frame's folders, outermost first, to its walk; None if they are others. Those of
#: ``type/view`` begin with the set's own name.
LAYOUTS: dict[str, Callable[[Sequence[str]], Key | None]] = {
    "id/type/view": lambda folders: tuple(folders[-3:]) if len(folders) >= 3 else None,
    "oumvlp": _oumvlp,
    "grew": _grew,
    "id/seq": lambda folders: (*folders[-2:], VIEW) if len(folders) >= 2 else None,
    "walk": lambda folders: (folders[-1], "00", VIEW),
    "type/view": lambda folders: tuple(folders) if len(folders) == 3 else None,
}


def find_layout(folders: Sequence[Sequence[str]]) -> str:
    """Return the layout of a set, from the folders of some of its frames, at least one.

    OU-MVLP's, GREW's and those of one subject of CASIA-B's have names of their own. Otherwise the
    usual depth decides: three folders and more, two, or one.
    """
    named = {
        "oumvlp": _oumvlp,
        "grew": _grew,
        "type/view": lambda names: _TYPE_VIEW.fullmatch("/".join(names)),
    }
    for name, fits in named.items():
        if sum(fits(f) is not None for f in folders) >= 0.8 * len(folders):
            return name
    [(depth, _)] = Counter(min(len(f), 3) for f in folders).most_common(1)
    return {3: "id/type/view", 2: "id/seq"}.get(depth, "walk")


def walk_of(layout: str, folders: Sequence[str], top: str) -> tuple[Key | None, str]:
    """Return the walk of a frame and "", or None and why it has none.

    Args:
        layout: a name of LAYOUTS.
        folders: of the frame, outermost first, below the data set's.
        top: the set's own name, which is the walk if masks lie right in it.
    """
    folders = (top, *folders) if layout == "type/view" or not folders else folders
    key = LAYOUTS[layout](folders)
    if key is None:
        return None, f"{'/'.join(folders)} is not the layout {layout}"
    for name in key:
        if not FOLDER_NAME.fullmatch(name):
            return None, f"rename the folder {name!r}: use A to Z, a to z, digits, _ and - only"
    return key, ""


def number_galleries(keys: Iterable[Key]) -> dict[Key, Key]:
    """Return each walk's final name: GREW's gallery videos get types 01, 02, ... by their names."""
    count, names = Counter(), {}
    for key in sorted(keys):
        subject, kind, view = key
        if kind == GALLERY:
            count[subject] += 1
            kind = f"{count[subject]:02d}"
        names[key] = (subject, kind, view)
    return names
