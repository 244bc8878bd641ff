"""A second device on any machine: its tensors keep their numbers in memory, and refuse to mix.

CUDA's kernels raise where an operation reads tensors of two devices. `second_device` does the same
without a GPU: each operation on `SECOND` runs on the CPU, after a check that no tensor of the CPU
takes part in it. So everything that waits for a number (``item``, ``tolist``) works too, and the
results are those of the CPU.

Import this module before the first backward pass of the process: autograd counts the devices then.
`test_second_device` runs it in a process of its own.
"""

import contextlib
import functools

import torch
from torch import Tensor
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode

SECOND = torch.device("privateuseone", 0)  # its name until it is registered as "second"
#: Operations that move numbers between devices.
MOVES = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default}


class SecondTensor(Tensor):
    """A tensor that is on `SECOND`; ``numbers`` is the CPU's tensor that holds its numbers."""

    @staticmethod
    def __new__(cls, numbers, requires_grad=False):
        tensor = Tensor._make_wrapper_subclass(
            cls,
            numbers.size(),
            strides=numbers.stride(),
            storage_offset=numbers.storage_offset(),
            dtype=numbers.dtype,
            device=SECOND,
            requires_grad=requires_grad,
        )
        tensor.numbers = numbers
        return tensor

    def __repr__(self, **_):
        return f"SecondTensor({self.numbers})"

    def tolist(self):
        """Return the numbers; torch refuses it for subclasses."""
        return self.numbers.tolist()

    def __deepcopy__(self, memo):
        """Copy the numbers; torch would copy a storage, which is not there."""
        if id(self) not in memo:
            twin = SecondTensor(self.numbers.detach().clone(), self.requires_grad)
            others = {key: value for key, value in vars(self).items() if key != "numbers"}
            vars(twin).update(others)  # whether it is a parameter
            memo[id(self)] = twin
        return memo[id(self)]

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        return _run(operation, args, kwargs or {})


class _SecondMode(TorchDispatchMode):
    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        return _run(operation, args, kwargs or {})


def _run(operation, args, kwargs):
    tensors = [(name, t) for name, value in _named(operation, args, kwargs) for t in _all(value)]
    here = any(isinstance(t, SecondTensor) for _, t in tensors)
    written = _written(operation)
    if here and operation not in MOVES:
        for name, tensor in tensors:  # a number without dimensions may come from the CPU
            strange = not isinstance(tensor, SecondTensor)
            if strange and (tensor.dim() or name in written):
                raise RuntimeError(f"{operation}: expected all tensors to be on the same device")
    device = kwargs.get("device")
    stays = here if device is None else torch.device(device).type == SECOND.type
    args_here = [_change(value, _numbers) for value in args]
    kwargs_here = {name: _change(value, _numbers) for name, value in kwargs.items()}
    if device is not None:
        kwargs_here["device"] = torch.device("cpu")
    result = operation(*args_here, **kwargs_here)
    if not stays:
        return result
    given = {id(_numbers(t)): t for _, t in tensors}  # an argument that was written comes back
    return _change(result, lambda t: given[id(t)] if id(t) in given else SecondTensor(t))


@functools.cache
def _written(operation):
    """Return the names of the arguments that an operation writes to."""
    arguments = operation._schema.arguments
    return {a.name for a in arguments if a.alias_info is not None and a.alias_info.is_write}


def _named(operation, args, kwargs):
    arguments = operation._schema.arguments
    return [*((a.name, v) for a, v in zip(arguments, args, strict=False)), *kwargs.items()]


def _all(value):
    values = value if isinstance(value, list | tuple) else [value]
    return [v for v in values if isinstance(v, Tensor)]


def _numbers(tensor):
    return tensor.numbers if isinstance(tensor, SecondTensor) else tensor


def _change(value, change):
    """Change the tensors of a value, which may be a list."""
    if isinstance(value, list | tuple):
        return type(value)(_change(v, change) for v in value)
    return change(value) if isinstance(value, Tensor) else value


class _Module(backend_registration._DummyBackendModule):
    """What `torch.autocast` asks of a device, also where it is off."""

    def get_amp_supported_dtype(self):
        return [torch.float16, torch.bfloat16]


def _register():
    """Register the device; torch allows that once for each process, for good."""
    backend_registration._setup_privateuseone_for_python_backend("second", _Module())


@contextlib.contextmanager
def second_device():
    """Make `SECOND` a device that ``to`` and ``device=`` take."""
    before = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device=) asks the mode, too
    try:
        with _SecondMode():
            yield SECOND
    finally:
        torch._C._set_only_lift_cpu_tensors(before)


_register()
