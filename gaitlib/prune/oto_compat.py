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
from collections.abc import Iterator
from pathlib import Path

import torch

from gaitlib.system.errors import UserError

log = logging.getLogger(__name__)

_ONNX_OPSET = 16  # only_train_once sets this at import, and its node names depend on it


@contextlib.contextmanager
def compat() -> Iterator[None]:
    """Set the names of older torch and Python and the ONNX opset; restore all of it on exit.

    Raises:
        UserError: if this torch has no such name to use.
    """
    with contextlib.ExitStack() as undo:
        undo.enter_context(quiet())
        try:
            from torch.onnx import symbolic_helper
            from torch.onnx._internal.torchscript_exporter import _globals, utils

            optimize = utils._optimize_graph
            # how operations are written; torch itself imports these when it first exports a network
            for version in range(7, _ONNX_OPSET + 1):
                importlib.import_module(f"{utils.__package__}.symbolic_opset{version}")
        except (ImportError, AttributeError) as error:
            raise UserError(
                f"only_train_once 3.0.1 cannot trace with torch {torch.__version__} ({error}): "
                "install torch>=2.11,<2.14"
            ) from error
        for name, module in (
            ("torch.onnx._globals", _globals),
            ("imp", types.ModuleType("imp")),  # imported but not used; not in Python 3.12
        ):
            if name not in sys.modules:
                sys.modules[name] = module
                undo.callback(sys.modules.pop, name)
        for owner, name, value in (
            (symbolic_helper, "is_caffe2_aten_fallback", lambda: False),
            (torch.onnx, "_optimize_graph", optimize),
            (_globals.GLOBALS, "export_onnx_opset_version", _ONNX_OPSET),
        ):
            if hasattr(owner, name):
                undo.callback(setattr, owner, name, getattr(owner, name))
            else:
                undo.callback(delattr, owner, name)
            setattr(owner, name, value)
        yield


@contextlib.contextmanager
def bare_imports() -> Iterator[None]:
    """Let the package import its ``graph`` and ``operation`` by their bare names.

    The package itself appends its folder to ``sys.path``, after any module of the caller's with the
    same name. Inside the context the package's folder comes first. On exit ``sys.path`` and the
    caller's modules are restored.
    """
    path = list(sys.path)

    def take_bare() -> dict[str, types.ModuleType]:
        names = [n for n in sys.modules if n.partition(".")[0] in ("graph", "operation")]
        return {name: sys.modules.pop(name) for name in names}

    callers = take_bare()
    folder = Path(importlib.util.find_spec("only_train_once").origin).parent
    sys.path.insert(0, str(folder))
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
        warnings.filterwarnings("ignore", module=r"torch\.onnx")  # nothing is exported
        try:
            yield
        finally:
            for line in printed.getvalue().splitlines():
                log.debug("only_train_once: %s", line)
