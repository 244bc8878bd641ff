"""The page on networks of one's own: its notebook runs, and both networks shrink unnoticed."""

import json

import matplotlib
import pytest

from workbook.system.folders import ROOT

PAGE = ROOT / "notebooks/08_your_network.ipynb"
SMALL = {
    "subjects": 8,
    "train_subjects": 6,
    "frames": (4, 5),
    "growth": 4,
    "channels": (4, 6, 8, 8, 8),
    "dense_steps": 3,
    "steps": 16,
}


def test_both_networks_end_at_a_quarter_and_compute_the_same(tmp_path, monkeypatch):
    matplotlib.use("Agg")
    monkeypatch.syspath_prepend(str(PAGE.parent))
    found = json.loads(PAGE.read_text())["cells"]
    parameters, *rest = ["".join(c["source"]) for c in found if c["cell_type"] == "code"]
    page = {}
    exec(parameters, page)
    page |= SMALL | {"folder": str(tmp_path / "walkers")}
    for cell in rest:  # one of them asserts that the outputs are the same
        exec(cell, page)
    for name, network in page["small"].items():
        assert page["gl"].macs_per_frame(network) <= 0.25 * page["dense_macs"][name]
    assert [row["is"] for row in page["rows"]] == ["dense", "dense", "cut", "cut"]


def test_the_example_of_the_page_runs():
    text = (ROOT / "docs/your-network.md").read_text()
    page = {}
    exec(text.split("```python\n")[1].split("```")[0], page)
    count = page["gl"].count_parameters
    assert count(page["small"]) < 0.5 * count(page["graph"].widen())
    assert page["optimizer"].cost_share == pytest.approx(0.25, abs=0.02)
