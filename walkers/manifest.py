"""The manifest: a file that records which walkers a folder holds.

A folder with the same manifest is reused, one with another is refused.
"""

import json
from collections.abc import Sequence
from numbers import Integral
from pathlib import Path

from gaitlib.system.files import replacing
from walkers.scene import TYPES, VIEWS, check_frames

VERSION = 3  # of the generator; increase it when a byte of the data changes
MANIFEST = "walkers.json"


def data_spec(
    subjects: int,
    train: int,
    types: Sequence[str],
    views: Sequence[str],
    frames: tuple[int, int],
    seed: int,
    noise: float,
    raw: bool,
) -> dict:
    """Check the arguments and return everything that decides the data's bytes, in JSON types.

    Raises:
        ValueError: an argument is wrong; the message says which values are right.
    """
    for name, value in (("subjects", subjects), ("train", train), ("seed", seed)):
        if not isinstance(value, Integral):
            raise ValueError(f"{name} is {value!r}: give a whole number")
    if not 1 <= subjects <= 999:
        raise ValueError(f"subjects is {subjects}: ids have three digits, so give 1 to 999")
    if not 0 <= train <= subjects:
        raise ValueError(f"train is {train}: give 0 to {subjects}, the number of subjects")
    if seed < 0:
        raise ValueError(f"seed is {seed}: give a number that is not negative")
    if not noise >= 0:
        raise ValueError(f"noise is {noise}: give 0 (clean) or more")
    for name, chosen, known in (("types", types, TYPES), ("views", views, VIEWS)):
        wrong = [c for c in chosen if c not in known]
        if isinstance(chosen, str) or wrong or not chosen:
            raise ValueError(f"{name} is {chosen!r}: give a selection of {', '.join(known)}")
    check_frames(frames)
    return {
        "version": VERSION,
        "subjects": int(subjects),
        "train": int(train),
        "types": sorted(set(types), key=TYPES.index),
        "views": sorted(set(views)),
        "frames": [int(f) for f in frames],
        "seed": int(seed),
        "noise": float(noise),
        "raw": bool(raw),
    }


def prepare_folder(root: Path, spec: dict) -> None:
    """Create the folder of a data set, with manifest, partition and README, or check the one there.

    Args:
        root: the folder.
        spec: from ``data_spec``.

    Raises:
        ValueError: ``root`` holds other walkers, or files that are not walkers.
    """
    manifest = root / MANIFEST
    if manifest.exists():
        try:
            found = json.loads(manifest.read_text())
        except ValueError as error:
            raise ValueError(
                f"{manifest} is no JSON ({error}): delete {root} to draw it again"
            ) from error
        differ = [
            f"{k} is {found.get(k)!r} there, {spec.get(k)!r} asked for"
            for k in sorted(found.keys() | spec.keys())
            if found.get(k) != spec.get(k)
        ]
        if differ:
            raise ValueError(
                f"{root} holds other walkers: {'; '.join(differ)}. "
                "Choose another folder, ask for the same arguments, or delete this one."
            )
    elif root.exists() and any(root.iterdir()):
        raise ValueError(f"{root} is not empty and holds no {MANIFEST}: choose another folder")
    root.mkdir(parents=True, exist_ok=True)
    people = [f"{s:03d}" for s in range(1, spec["subjects"] + 1)]
    split = {"TRAIN_SET": people[: spec["train"]], "TEST_SET": people[spec["train"] :]}
    texts = {
        MANIFEST: json.dumps(spec, indent=1) + "\n",  # first: it says whose folder this is
        "partition.json": json.dumps(split, indent=1) + "\n",
        "README.md": _readme(spec),
    }
    for name, text in texts.items():
        if not (root / name).exists():
            with replacing(root / name) as part:
                part.write_text(text)


def _readme(spec: dict) -> str:
    settings = "\n".join(f"- {k}: {json.dumps(v)}" for k, v in spec.items())
    return f"""# Walkers

Synthetic gait silhouettes in the layout of CASIA-B-pkl, drawn by gaitlib's procedural walker. No
real person
walked here, and no figure measured on these files says anything about real people: name it
"walker".

{settings}
"""
