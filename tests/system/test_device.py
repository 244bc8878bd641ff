"""Where a network runs: memory that a step frees is kept for the next."""

import platform

import pytest
import torch

from gaitlib.system.device import choose_device, keep_freed_memory


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator alone is told")
def test_freed_memory_is_taken_again_without_new_pages():
    resource = pytest.importorskip("resource")
    keep_freed_memory("cpu")
    size = 64 << 20
    faults = []
    for _ in range(20):  # the first ones may leave holes that a later one just misses
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(size, dtype=torch.uint8)  # freed at once
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    assert max(faults[-5:]) < size / 4096 / 10


def test_a_gpu_and_other_systems_are_left_alone(monkeypatch):
    monkeypatch.setattr("ctypes.CDLL", lambda name: pytest.fail("glibc was told"))
    keep_freed_memory("cuda")
    monkeypatch.setattr("sys.platform", "win32")
    keep_freed_memory("cpu")


@pytest.mark.parametrize("device", ["mps", "meta", "cpu:1", "gpu", "cuda:-1", "", "cuda:x"])
def test_a_device_that_nothing_runs_on_is_refused(device):
    with pytest.raises(ValueError, match="is not one of auto, cpu, cuda, cuda:N|is not available"):
        choose_device(device)
