"""The data_cfg section: which silhouettes, and how they are read."""

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt, model_validator

from gaitlib.config.base import Pair, Section


class WalkerCfg(Section):
    """The embedded data set (`gaitlib.data.walker`), made at ``dataset_root`` on first use."""

    subjects: PositiveInt = 34
    train: PositiveInt = 24
    frames: Pair = (16, 20)
    seed: NonNegativeInt = 0
    noise: NonNegativeFloat = 1.0

    @model_validator(mode="after")
    def _some_of_each(self) -> "WalkerCfg":
        if self.train >= self.subjects:
            raise ValueError(
                f"train is {self.train} of {self.subjects} subjects: leave at least one to test"
            )
        if self.frames[0] > self.frames[1]:
            raise ValueError(f"frames is {list(self.frames)}: write [fewest, most]")
        return self


class DataCfg(Section):
    """Which silhouettes, and how they are read."""

    dataset_name: str = "CASIA-B"
    dataset_root: str | None = None
    dataset_partition: str | None = None
    test_dataset_name: str | None = None
    num_workers: NonNegativeInt = 1
    remove_no_gallery: bool = False
    cache: bool = False
    data_in_use: tuple[bool, ...] | None = Field(default=None, strict=False)
    walker: WalkerCfg | None = None

    @model_validator(mode="after")
    def _can_be_found(self) -> "DataCfg":
        if self.walker is None:
            for key in ("dataset_root", "dataset_partition"):
                if getattr(self, key) is None:
                    raise ValueError(
                        f"{key} is missing: name your CASIA-B-pkl folder and its partition JSON, "
                        "or add a `walker:` section for the embedded data set"
                    )
        if self.data_in_use is not None and sum(self.data_in_use) != 1:
            raise ValueError(
                f"data_in_use is {list(self.data_in_use)}: silhouettes are the one input used here"
            )
        return self
