"""The base of every section: frozen and typed; refuses unknown keys with the nearest valid name."""

import difflib
import math
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from gaitlib.system.files import name_fault


class ConfigError(ValueError):
    """An experiment that cannot run; the message lists each section, its value and the fix."""


def nearest(name: str, valid: Iterable[str]) -> str:
    """Return a hint for a mistyped name: the nearest valid name, and all valid names."""
    valid = sorted(valid)
    close = difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}valid: {', '.join(valid)}"


class Section(BaseModel):
    """A section: frozen, without unknown keys, and never silently turning text into numbers."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, populate_by_name=True, allow_inf_nan=False
    )

    @model_validator(mode="before")
    @classmethod
    def _name_the_nearest(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        for key in values:
            if key not in cls.model_fields:
                raise ValueError(f"unknown key {key!r}; {nearest(str(key), cls.model_fields)}")
        return dict(values)


def _begins_file_names(name: str) -> str:
    if fault := name_fault(name, longest=200):  # more is added to it
        raise ValueError(f"{name!r} cannot begin the names of files: {fault}; use letters")
    return name


#: Text that begins the names of files.
FileName = Annotated[str, AfterValidator(_begins_file_names)]
#: Text for tables and messages.
Words = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$")]
#: A path as text.
PathText = Annotated[str, Field(max_length=4096, pattern=r"^[^\x00-\x1f\x7f]*$")]

#: The most channels or parts of a layer, and the most classes, that a file may ask for.
MAX_WIDTH, MAX_CLASSES = 16_384, 10**6

# Numbers and their usual ranges. What is beyond them is a mistake, and ends a run late or never.
Steps = Annotated[int, Field(ge=1, le=10**9)]
StepsFrom0 = Annotated[int, Field(ge=0, le=10**9)]
Frames = Annotated[int, Field(ge=1, le=100_000)]
Clips = Annotated[int, Field(ge=1, le=10_000)]
Width = Annotated[int, Field(ge=1, le=MAX_WIDTH)]  # channels or parts
Classes = Annotated[int, Field(ge=1, le=MAX_CLASSES)]
LearningRate = Annotated[float, Field(gt=0, le=100)]
WeightDecay = Annotated[float, Field(ge=0, le=10)]
Momentum = Annotated[float, Field(ge=0, lt=1)]  # and Adam's betas
Dampening = Annotated[float, Field(ge=0, le=1)]
Widths = Annotated[tuple[Width, ...], Field(strict=False, max_length=100)]


def is_number(text: Any) -> bool:
    """Return whether a value is a number or the text of one, such as ``1e-3``."""
    try:
        return math.isfinite(float(text))
    except (TypeError, ValueError):
        return False


def number_as_yaml(text: str) -> str:
    """Write a number so that YAML 1.1 reads it as one: ``1e-10`` becomes ``1.0e-10``."""
    number = float(text)
    if number.is_integer() and abs(number) < 1e15:
        return str(int(number))
    mantissa, e, exponent = repr(number).partition("e")
    return mantissa + ("" if "." in mantissa or not e else ".0") + e + exponent
