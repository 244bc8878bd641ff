"""What a user can say of raw masks: the same options for every command that reads them."""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from workbook.pretreat.mask_layouts import LAYOUTS


@dataclass(frozen=True)
class MaskOptions:
    """What is told of raw masks. What is None is found out from some of them.

    Attributes:
        layout: a name of `workbook.pretreat.mask_layouts.LAYOUTS`.
        invert: whether the background is bright.
        threshold: values above it, of the files' own, are the person.
    """

    layout: Annotated[
        str | None,
        typer.Option(help=f"{', '.join(LAYOUTS)}; by default as the folders look."),
    ] = None
    invert: Annotated[
        bool | None,
        typer.Option(
            "--invert/--no-invert", help="Whether the background is bright; else it is seen."
        ),
    ] = None
    threshold: Annotated[
        int | None,
        typer.Option(help="Values above it, of the files' own, are the person; else it is seen."),
    ] = None


NOTHING_TOLD = MaskOptions()


def with_mask_options(threshold: str = "threshold") -> Callable[..., Callable[..., None]]:
    """Give a command the options of `MaskOptions`, as which it gets them in ``masks``.

    Args:
        threshold: the option's name in a command with another ``--threshold``.
    """
    layout, invert, above = inspect.signature(MaskOptions).parameters.values()
    options = [layout, invert, above.replace(name=threshold)]

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def wrapped(**given: Any) -> None:
            masks = MaskOptions(*(given.pop(option.name) for option in options))
            command(**given, masks=masks)

        signature = inspect.signature(command)
        parameters = []
        for parameter in signature.parameters.values():
            parameters += options if parameter.name == "masks" else [parameter]
        wrapped.__signature__ = signature.replace(parameters=parameters)
        return wrapped

    return decorate
