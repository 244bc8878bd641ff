"""The manifest: a file that records which walkers a folder holds.

A folder with the same manifest is reused, one with another is refused.
"""

import json
from collections.abc import Sequence
from numbers import Integral
from pathlib import Path

from gaitlib.system.errors import UserError
from gaitlib.system.files import replacing
from walkers.layouts import DEFAULT, LAYOUTS, Place, layout_of
from walkers.scene import check_frames
from walkers.styles import STYLES

VERSION = 4  # of the generator; increase it when a byte of the data changes
MANIFEST = "walkers.json"


def data_spec(
    layout: str,
    subjects: int | None,
    train: int | None,
    types: Sequence[str] | None,
    views: Sequence[str] | None,
    frames: tuple[int, int],
    frame_step: int,
    style: str,
    seed: int,
    noise: float,
    raw: bool,
) -> dict:
    """Check the arguments and return everything that decides the data's bytes, in JSON types.

    Raises:
        UserError: an argument is wrong; the message says which values are right.
    """
    if layout not in LAYOUTS:
        raise UserError(f"layout is {layout!r}: choose from {', '.join(LAYOUTS)}")
    chosen = LAYOUTS[layout]
    subjects = chosen.subjects if subjects is None else subjects
    train = min(chosen.train, subjects) if train is None else train
    for name, value in (
        ("subjects", subjects),
        ("train", train),
        ("frame_step", frame_step),
        ("seed", seed),
    ):
        if not isinstance(value, Integral):
            raise UserError(f"{name} is {value!r}: give a whole number")
    if not 1 <= subjects <= 999:
        raise UserError(f"subjects is {subjects}: ids have three digits, so give 1 to 999")
    if not 0 <= train <= subjects:
        raise UserError(f"train is {train}: give 0 to {subjects}, the number of subjects")
    if seed < 0:
        raise UserError(f"seed is {seed}: give a number that is not negative")
    if not noise >= 0:
        raise UserError(f"noise is {noise}: give 0 (clean) or more")
    if raw and layout != DEFAULT:
        raise UserError(f"raw frames in the layout {layout}: only {DEFAULT} has them")
    selected = {}
    for name, given, known in (("types", types, chosen.types), ("views", views, chosen.views)):
        given = list(known) if given is None else given
        if isinstance(given, str) or any(g not in known for g in given) or (known and not given):
            names = ", ".join(known) or f"nothing: {layout}'s depend on the person"
            raise UserError(f"{name} is {given!r}: give a selection of {names}")
        selected[name] = [entry for entry in known if entry in set(given)]
    check_frames(frames, frame_step)
    if style not in STYLES:
        raise UserError(f"style is {style!r}: choose from {', '.join(STYLES)}")
    return {
        **({} if layout == DEFAULT else {"layout": layout}),
        "version": VERSION,
        "subjects": int(subjects),
        "train": int(train),
        **selected,
        "frames": [int(f) for f in frames],
        "frame_step": int(frame_step),
        "style": style,
        "seed": int(seed),
        "noise": float(noise),
        "raw": bool(raw),
    }


def all_places(spec: dict) -> list[tuple[int, Place]]:
    """Return the number of the person, and the place, of every sequence of a data set."""
    layout = layout_of(spec)
    return [
        (person, place)
        for person in range(1, spec["subjects"] + 1)
        for place in layout.places(person, person <= spec["train"], spec["types"], spec["views"])
    ]


def _partition(spec: dict) -> dict[str, list[str]]:
    """Return the subjects of both sets, and the lists of test sequences that the layout has."""
    sides: dict[str, dict[str, None]] = {"TRAIN_SET": {}, "TEST_SET": {}}
    layout = layout_of(spec)
    lists: dict[str, list[str]] = {name: [] for name in layout.lists}
    for person, place in all_places(spec):
        train = person <= spec["train"]
        sides["TRAIN_SET" if train else "TEST_SET"][place.subject] = None
        for name, is_listed in layout.lists.items():
            if not train and is_listed(place):
                lists[name].append("-".join(place[:3]))
    return {name: list(subjects) for name, subjects in sides.items()} | lists


def prepare_folder(root: Path, spec: dict) -> None:
    """Create the folder of a data set, with manifest, partition and README, or check the one there.

    Args:
        root: the folder.
        spec: from ``data_spec``.

    Raises:
        UserError: ``root`` holds other walkers, or files that are not walkers.
    """
    manifest = root / MANIFEST
    if manifest.exists():
        try:
            found = json.loads(manifest.read_text())
        except ValueError as error:
            raise UserError(
                f"{manifest} is no JSON ({error}): delete {root} to draw it again"
            ) from error
        differ = [
            f"{k} is {found.get(k)!r} there, {spec.get(k)!r} asked for"
            for k in sorted(found.keys() | spec.keys())
            if found.get(k) != spec.get(k)
        ]
        if differ:
            raise UserError(
                f"{root} holds other walkers: {'; '.join(differ)}. "
                "Choose another folder, ask for the same arguments, or delete this one."
            )
    elif root.exists() and any(root.iterdir()):
        raise UserError(f"{root} is not empty and holds no {MANIFEST}: choose another folder")
    root.mkdir(parents=True, exist_ok=True)
    texts = {
        MANIFEST: json.dumps(spec, indent=1) + "\n",  # first: it says whose folder this is
        "partition.json": json.dumps(_partition(spec), indent=1) + "\n",
        "README.md": _readme(spec),
    }
    for name, text in texts.items():
        if not (root / name).exists():
            with replacing(root / name) as part:
                part.write_text(text)


def _readme(spec: dict) -> str:
    layout = spec.get("layout", "CASIA-B-pkl")
    settings = "\n".join(f"- {k}: {json.dumps(v)}" for k, v in spec.items())
    return f"""# Walkers

Synthetic gait silhouettes in the layout of {layout}, drawn by gaitlib's procedural walker. No
real person
walked here, and no figure measured on these files says anything about real people: name it
"walker".

{settings}
"""
