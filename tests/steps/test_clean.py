"""What is left behind is found and removed; what a run needs or writes stays."""

import os
import time

import pytest
from typer.testing import CliRunner

from workbook.cli import app

OLD = time.time() - 7200


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    """A workspace with finished and unfinished files; the value says whether to remove it."""
    monkeypatch.setenv("GAITLIB_WORKSPACE", str(tmp_path))
    compressed = "runs/r/geta/compressed"
    files = {
        "runs/r/geta/checkpoints/.GaitBase-00005.pt.x1.part": True,
        "runs/r/geta/checkpoints/GaitBase-00005.pt": False,
        f"{compressed}/compressed_gaitbase_geta_2026-01-01_00-00-00.safetensors": True,
        f"{compressed}/full_gaitbase_geta_2026-01-01_00-00-00.pt": True,
        f"{compressed}/compressed_gaitbase_geta_2026-01-02_00-00-00.safetensors": False,
        f"{compressed}/full_gaitbase_geta_2026-01-02_00-00-00.pt": False,
        f"{compressed}/full_gaitbase_geta_2026-01-03_00-00-00.pt": False,  # being written
        f"{compressed}/embedding/compressed_gaitbase_geta_2026-01-01_00-00-00.onnx": False,
        "runs/r/previous/geta-2026/compressed/compressed_x_2026-01-01_00-00-00.pt": False,
        "runs/.launch-abc/experiment.yaml": True,
        "data/mapped/pkl-1-2.abc.bin": True,
        "data/pkl/001/nm-01/000/.000.pkl.x2.part": True,
    }
    for name in files:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("content")
        os.utime(path, (OLD, OLD))
    os.utime(tmp_path / "runs/.launch-abc", (OLD, OLD))
    return tmp_path, files


def left(folder):
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


def test_leftovers_are_listed_and_removed_and_nothing_else_is(workspace):
    folder, files = workspace
    fresh = folder / "runs/r/geta/.results.json.x3.part"
    fresh.touch()
    listed = CliRunner().invoke(app, ["clean", "--dry-run"])
    assert listed.exit_code == 0 and "6 files, 42 bytes could be removed" in listed.stdout
    assert left(folder) == {*files, str(fresh.relative_to(folder))}
    with (folder / "data/mapped/pkl-1-2.abc.bin").open() as used:
        assert "5 files" in CliRunner().invoke(app, ["clean"]).stdout
        assert os.path.exists(used.name)
    assert "1 files" in CliRunner().invoke(app, ["clean"]).stdout
    kept = {name for name, removed in files.items() if not removed}
    assert left(folder) == kept | {str(fresh.relative_to(folder))}


def test_a_file_in_use_stays_where_its_folder_is_a_link(workspace):
    folder, _ = workspace
    (folder / "data").rename(folder / "disk")
    (folder / "data").symlink_to(folder / "disk")
    with (folder / "data/mapped/pkl-1-2.abc.bin").open() as used:
        assert "5 files" in CliRunner().invoke(app, ["clean"]).stdout
        assert os.path.exists(used.name)
