"""Lend only_train_once 3.0.1 the surroundings it was written for, and take them back.

The package reads private names of an older torch, sets a global ONNX opset, appends to
``sys.path``, imports its own parts under bare names, and prints. Nothing here imports it.
"""

import contextlib
import importlib
import importlib.util
import io
import logging
import sys
import types
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

log = logging.getLogger(__name__)

_ONNX_OPSET = 16  # only_train_once sets this at import, and its node names depend on it
_GLOBALS_HOMES = (
    "torch.onnx._globals",
    "torch.onnx._internal.torchscript_exporter._globals",
)
_OPTIMIZE_HOMES = (
    "torch.onnx",
    "torch.onnx.utils",
    "torch.onnx._internal.torchscript_exporter.utils",
)


class UnsupportedTorchError(ImportError):
    """This torch lacks a private name that only_train_once needs."""


@contextlib.contextmanager
def as_the_package_wants() -> Iterator[None]:
    """Lend the names of older torch and Python and the ONNX opset; give all of it back."""
    with contextlib.ExitStack() as undo:
        undo.enter_context(quiet())
        helper = importlib.import_module("torch.onnx.symbolic_helper")
        settings = _find(_GLOBALS_HOMES, "GLOBALS")
        optimize = _find(_OPTIMIZE_HOMES, "_optimize_graph")
        for name, module in (
            ("torch.onnx._globals", sys.modules[type(settings).__module__]),
            ("imp", types.ModuleType("imp")),  # imported, never used; gone from Python 3.12
        ):
            if name not in sys.modules and _spec(name) is None:
                sys.modules[name] = module
                undo.callback(sys.modules.pop, name, None)
        for owner, name, value in (
            (helper, "is_caffe2_aten_fallback", lambda: False),
            (torch.onnx, "_optimize_graph", optimize),
        ):
            if not hasattr(owner, name):
                setattr(owner, name, value)
                undo.callback(delattr, owner, name)
        undo.callback(
            setattr, settings, "export_onnx_opset_version", settings.export_onnx_opset_version
        )
        settings.export_onnx_opset_version = _ONNX_OPSET
        yield


def _spec(name: str) -> Any:
    try:
        return importlib.util.find_spec(name)
    except ModuleNotFoundError:
        return None


def _find(homes: Sequence[str], name: str) -> Any:
    for home in homes:
        with contextlib.suppress(ImportError):
            module = importlib.import_module(home)
            if hasattr(module, name):
                return getattr(module, name)
    raise UnsupportedTorchError(
        f"torch {torch.__version__} keeps {name} in none of {', '.join(homes)}, and "
        "only_train_once 3.0.1 cannot trace without it; install torch>=2.11,<2.14"
    )


@contextlib.contextmanager
def own_modules() -> Iterator[None]:
    """Let the package find its ``graph`` and ``operation`` by their bare names, during its import.

    It appends its folder to ``sys.path`` for that, where a module of the caller's of the same name
    would come first; afterwards the path and the names are as they were.
    """
    spec = importlib.util.find_spec("only_train_once")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(
            "only_train_once is not installed: pip install only_train_once==3.0.1"
        )
    path = list(sys.path)
    bare = ("graph", "operation")

    def take_bare() -> dict[str, types.ModuleType]:
        names = [name for name in sys.modules if name.partition(".")[0] in bare]
        return {name: sys.modules.pop(name) for name in names}

    callers = take_bare()
    sys.path.insert(0, str(Path(spec.origin).parent))
    try:
        yield
    finally:
        take_bare()
        sys.modules.update(callers)
        sys.path[:] = path


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Send prints to the log and drop the warnings of old code and of tracing shape checks."""
    printed = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(printed):
        for category in (torch.jit.TracerWarning, DeprecationWarning, SyntaxWarning, FutureWarning):
            warnings.simplefilter("ignore", category)
        try:
            yield
        finally:
            for line in printed.getvalue().splitlines():
                log.debug("only_train_once: %s", line)
