"""Fixtures for all tests."""

import pytest
import torch


def pytest_collection_modifyitems(items):
    """Put files with slow tests first: one that starts last leaves the other core idle."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(autouse=True)
def _seed_torch():
    torch.manual_seed(0)


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    """The folder of this test as the one that runs and figures are written to."""
    monkeypatch.setenv("GAITLIB_WORKSPACE", str(tmp_path))
    return tmp_path
