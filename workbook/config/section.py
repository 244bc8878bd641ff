"""The base of every section: frozen and typed; refuses unknown keys with the nearest valid name."""

import difflib
import inspect
import sys
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, create_model, model_validator

from gaitlib.model.widths import MAX_CLASSES, MAX_WIDTH
from gaitlib.system.errors import UserError
from workbook.system.folders import name_fault


class ConfigError(UserError):
    """An experiment that cannot run; the message lists each section, its value and the fix."""


def nearest(name: str, valid: Iterable[str]) -> str:
    """Return a hint for a mistyped name: the nearest valid name, and all valid names."""
    valid = sorted(valid)
    close = difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}valid: {', '.join(valid)}"


@dataclass(frozen=True)
class Harmless:
    """Marks a key that does not change what a run computes, as ``Annotated[int, Harmless()]``.

    Attributes:
        to: what it does not change: trained weights only, or results as well.
    """

    to: Literal["weights", "results"] = "results"


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
                raise UserError(f"unknown key {key!r}; {nearest(str(key), cls.model_fields)}")
        return dict(values)


class Built(Section):
    """A section whose keys are the arguments of what it builds; `section_of` makes one.

    Types, defaults and checks are those of the constructor.
    """

    _constructor: ClassVar[Callable[..., Any]]
    _arguments: ClassVar[tuple[str, ...]]

    @model_validator(mode="after")
    def _can_be_built(self) -> Self:
        with torch.device("meta"):  # a network takes no memory there and no random numbers
            self.build()
        return self

    def build(self) -> Any:
        """Call the constructor with this section's values."""
        values = {key: getattr(self, key) for key in self._arguments}
        return self._constructor(
            **{k: v.build() if isinstance(v, Built) else v for k, v in values.items()}
        )


def section_of(
    constructor: Callable[..., Any], name: str, type_: str = "", **narrower: Any
) -> type[Built]:
    """Return the section of a constructor's arguments, by its signature.

    Args:
        constructor: a class or function whose arguments have types and, but for required ones,
            defaults. Its docstring describes the keys.
        name: of the section's class, and of the caller's variable, so that it can be pickled.
        type_: the value of the section's first key ``type``, which chooses the constructor; without
            it there is no such key.
        narrower: types of arguments whose own says less than a file may hold, such as a range.
    """
    arguments_of = constructor.__init__ if isinstance(constructor, type) else constructor
    hints = typing.get_type_hints(arguments_of)
    fields = {"type": (Literal[type_], type_)} if type_ else {}
    fields |= {
        key: (
            narrower.get(key) or _of_yaml(hints[key]),
            ... if argument.default is argument.empty else argument.default,
        )
        for key, argument in inspect.signature(constructor).parameters.items()
    }
    made = create_model(
        name,
        __base__=Built,
        __doc__=inspect.getdoc(constructor),
        __module__=sys._getframe(1).f_globals["__name__"],  # where pickle finds it
        **fields,
    )
    made._constructor = staticmethod(constructor)
    made._arguments = tuple(fields.keys() - {"type"})
    return made


def sections_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the sections that a value of this type can be or hold."""
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        if issubclass(annotation, BaseModel):
            yield annotation
    else:
        for part in typing.get_args(annotation):
            yield from sections_in(part)


def default_of(settings: type, name: str) -> Any:
    """Return the default of a dataclass's field."""
    return settings.__dataclass_fields__[name].default


def _of_yaml(annotation: Any) -> Any:
    """Let a tuple be given as a list, as YAML has it."""
    if typing.get_origin(annotation) is tuple:
        return Annotated[annotation, Field(strict=False)]
    if inner := typing.get_args(annotation):
        if typing.get_origin(annotation) in (typing.Union, types.UnionType):
            return typing.Union[tuple(map(_of_yaml, inner))]  # noqa: UP007 (of a list)
        if typing.get_origin(annotation) is dict:
            return dict[inner[0], _of_yaml(inner[1])]
    return annotation


def _begins_file_names(name: str) -> str:
    if fault := name_fault(name, longest=200):  # more is added to it
        raise UserError(f"{name!r} cannot begin the names of files: {fault}; use letters")
    return name


#: Text that begins the names of files.
FileName = Annotated[str, AfterValidator(_begins_file_names)]
#: Text for tables and messages.
Words = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$")]
#: A path as text.
PathText = Annotated[str, Field(max_length=4096, pattern=r"^[^\x00-\x1f\x7f]*$")]

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
