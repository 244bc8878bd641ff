"""Provide the environment that only_train_once 3.0.1 was written for, and restore it afterwards.

The package reads private names of an older torch, sets a global ONNX opset, appends to
``sys.path``, imports its own modules under bare names, and prints. This file does not import it.
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

from gaitlib.system.errors import UserError

log = logging.getLogger(__name__)

_ONNX_OPSET = 16  # only_train_once sets this at import, and its node names depend on it
_GLOBALS_MODULES = (
    "torch.onnx._globals",
    "torch.onnx._internal.torchscript_exporter._globals",
)
_OPTIMIZE_MODULES = (
    "torch.onnx",
    "torch.onnx.utils",
    "torch.onnx._internal.torchscript_exporter.utils",
)


class UnsupportedTorchError(UserError):
    """This torch lacks a private name that only_train_once needs."""


@contextlib.contextmanager
def compat() -> Iterator[None]:
    """Set the names of older torch and Python and the ONNX opset; restore all of it on exit.

    Raises:
        UnsupportedTorchError: if this torch has no such name to use.
    """
    with contextlib.ExitStack() as undo:
        undo.enter_context(quiet())
        helper = importlib.import_module("torch.onnx.symbolic_helper")
        settings = _find(_GLOBALS_MODULES, "GLOBALS")
        optimize = _find(_OPTIMIZE_MODULES, "_optimize_graph")
        for name, module in (
            ("torch.onnx._globals", sys.modules[type(settings).__module__]),
            ("imp", types.ModuleType("imp")),  # imported but not used; not in Python 3.12
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


def _find(modules: Sequence[str], name: str) -> Any:
    for path in modules:
        with contextlib.suppress(ImportError):
            module = importlib.import_module(path)
            if hasattr(module, name):
                return getattr(module, name)
    raise UnsupportedTorchError(
        f"torch {torch.__version__} has {name} in none of {', '.join(modules)}, and "
        "only_train_once 3.0.1 cannot trace without it; install torch>=2.11,<2.14"
    )


@contextlib.contextmanager
def bare_imports() -> Iterator[None]:
    """Let the package import its ``graph`` and ``operation`` by their bare names.

    The package itself appends its folder to ``sys.path``, after any module of the caller's with the
    same name. Inside the context the package's folder comes first. On exit ``sys.path`` and the
    caller's modules are restored.

    Raises:
        ModuleNotFoundError: if only_train_once is not installed.
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
    """Send prints to the log, and drop warnings about old code and about traced shape checks."""
    printed = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(printed):
        for category in (torch.jit.TracerWarning, DeprecationWarning, SyntaxWarning, FutureWarning):
            warnings.simplefilter("ignore", category)
        try:
            yield
        finally:
            for line in printed.getvalue().splitlines():
                log.debug("only_train_once: %s", line)
