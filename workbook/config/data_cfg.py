"""The data_cfg section: which silhouettes are used, and how they are read."""

import json
from typing import Annotated, Literal

from pydantic import (
    Field,
    PositiveInt,
    StrictBool,
    StrictInt,
    field_validator,
    model_validator,
)

from gaitlib.system.errors import UserError
from workbook.config.section import Frames, Harmless, PathText, Section, Words

Side = Annotated[int, Field(ge=1, le=4096)]
FrameSize = Annotated[tuple[Side, Side], Field(strict=False)]  # rows and columns


class WalkerCfg(Section):
    """The embedded data set (`walkers`), drawn at ``dataset_root`` on first use.

    - ``subjects``: number of walkers.
    - ``train``: how many of them, from the first on, are trained on. The others are tested.
    - ``frames``: the fewest and the most frames of a sequence.
    - ``frame_step``: a sequence has one of so many of the camera's frames. With 24 frames, 1 is
      one second in the middle of the path, 4 is a whole pass, as in CASIA-B.
    - ``seed``: of bodies and gaits.
    - ``noise``: strength of the camera's noise; 0 is clean.
    """

    subjects: Annotated[int, Field(ge=1, le=999)] = 34  # ids have three digits
    train: PositiveInt = 24
    frames: Annotated[tuple[Frames, Frames], Field(strict=False)] = (16, 20)
    frame_step: Frames = 1
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    noise: Annotated[float, Field(ge=0, le=1000)] = 1.0

    @model_validator(mode="after")
    def _some_of_each(self) -> "WalkerCfg":
        if self.train >= self.subjects:
            raise UserError(
                f"train is {self.train} of {self.subjects} subjects: keep at least one to test"
            )
        if self.frames[0] > self.frames[1]:
            raise UserError(f"frames is {list(self.frames)}: write [fewest, most]")
        return self


class DataCfg(Section):
    """Which silhouettes are used, and how they are read.

    - ``dataset_name``: the data set's name in results.json. OpenGait's name of a known one also
      chooses the protocol.
    - ``test_dataset_name``: a name that chooses the protocol instead.
    - ``dataset_root``: the folder of the subjects, ``<subject>/<type>/<view>/*.pkl``. Required
      without ``walker``.
    - ``dataset_partition``: a JSON file that lists the subjects to train on and to test. Required
      without ``walker``. Relative paths start at the working folder, or else at the project's.
    - ``num_workers``: processes that load batches. The batches are the same for any number.
    - ``cache``: keep all silhouettes in memory; ``mapped`` gathers them in one memory-mapped file
      under ``data/mapped``, which all processes share and later runs open at once.
    - ``remove_no_gallery``: drop probes whose subject has no gallery sequence at a view, instead
      of counting a miss.
    - ``data_in_use``: which of a sequence folder's files, sorted by name, holds the silhouettes: a
      mask with one true entry, or its number in a list. Left out, the folder may hold one only.
    - ``frame_size``: rows and columns of the stored frames. Left out, the sequences on disk say
      it; without them a network's cost is that on frames of 64 x 64. (Not OpenGait's.)
    - ``walker``: use the embedded data set. (Not OpenGait's.)
    """

    dataset_name: Annotated[Words, Harmless("weights")] = "CASIA-B"
    test_dataset_name: Annotated[Words | None, Harmless("weights")] = None
    dataset_root: Annotated[PathText | None, Harmless("weights")] = None
    dataset_partition: Annotated[PathText | None, Harmless("weights")] = None
    num_workers: Annotated[int, Field(ge=0, le=1024), Harmless()] = 1
    remove_no_gallery: bool = False
    cache: Annotated[Literal[False, True, "mapped"], Harmless()] = False
    data_in_use: tuple[StrictBool | StrictInt, ...] | None = Field(default=None, strict=False)
    frame_size: Annotated[FrameSize | None, Harmless("weights")] = None
    walker: WalkerCfg | None = None

    @model_validator(mode="after")
    def _can_be_found(self) -> "DataCfg":
        if self.walker is None:
            for key in ("dataset_root", "dataset_partition"):
                if getattr(self, key) is None:
                    raise UserError(
                        f"{key} is missing: name your CASIA-B-pkl folder and its partition JSON, "
                        "or add a `walker:` section for the embedded data set"
                    )
        return self

    @field_validator("data_in_use")
    @classmethod
    def _one_file(cls, value: tuple[bool | int, ...] | None) -> tuple[bool | int, ...] | None:
        """Accept OpenGait's two forms: a mask over the files, sorted by name, or their numbers."""
        if value is not None and (len(chosen := _chosen(value)) != 1 or chosen[0] < 0):
            raise UserError(
                f"data_in_use is {json.dumps(value)}: silhouettes are the only input, so one file "
                "of a sequence folder is read; write one true, as [true, false], or its number, as "
                "[0]"
            )
        return value

    @property
    def file_in_use(self) -> int | None:
        """The position of the file to read among a sequence folder's files, sorted by name."""
        return None if self.data_in_use is None else _chosen(self.data_in_use)[0]


def _chosen(value: tuple[bool | int, ...]) -> list[int]:
    """Return the numbers of the files that a mask or a list of numbers chooses."""
    if value and all(isinstance(entry, bool) for entry in value):
        return [i for i, used in enumerate(value) if used]
    return [int(entry) for entry in value]
