"""The table of a finished run, from hand-made result files."""

import pytest

from workbook import runs
from workbook.report import summary
from workbook.report.summary import compare, summary_table

COLUMNS = ("NM", "BG", "CL", *summary.COLUMNS)


pytestmark = pytest.mark.usefixtures("workspace")


def results(nm, milliseconds=2.0, **others):
    return {
        "conditions": ["NM", "BG", "CL"],
        "rank1": {"NM": nm, "BG": 80.25, "CL": None},
        "params": 123_288,
        "macs_per_frame": 18_590_000,
        "bits": {"weights": 32, "activations": 32},
        "file_bytes": 525_400,
        "latency_ms": {"batch_1": milliseconds, "batch_16": 20.0},
        **others,
    }


def compressed(nm, **others):
    """Return results of a compressing stage, which timed the dense network too: 7 ms."""
    dense = {"latency_ms": {"batch_1": 7.0, "batch_16": 70.0}}
    extra = {"dense": dense, "group_sparsity": 0.5, "full_equals_compressed": 1.5e-6}
    return results(nm, **extra, **others)


def save(**stages):
    for stage, values in stages.items():
        runs.save_results("r", stage, values)


def rows_of(text):
    """Return the table's rows: the network's name to its NM and its time for 1 clip."""
    found = {}
    for line in text.splitlines()[1:]:
        if line.startswith(("group sparsity", "results and", "figures:")):
            break
        cells = line.split()
        name, values = cells[: -len(COLUMNS)], cells[-len(COLUMNS) :]
        row = dict(zip(COLUMNS, values, strict=True))
        found[" ".join(name)] = (row["NM"], row["ms, 1 clip"])
    return found


def test_cells_are_text_with_their_units_and_what_is_missing_is_a_dash():
    full = results(84.34, relative_bops=1.404, lowbit_bytes=43_200)
    table = compare({"dense": full, "float": results(84.34), "empty": {}})
    assert tuple(table) == COLUMNS
    assert table.loc["dense"].to_dict() == {
        **{"NM": "84.3", "BG": "80.2", "CL": "-", "parameters": "123,288"},
        **{"MMAC/frame": "18.59", "bits w/a": "32.0/32.0", "rel. BOPs %": "1.40", "kB": "43"},
        **{"ms, 1 clip": "2.0", "ms, 16 clips": "20"},
    }
    assert table.loc["float", ["kB", "rel. BOPs %"]].tolist() == ["525", "-"]  # the weights' file
    assert set(table.loc["empty"]) == {"-"}


def test_a_runs_networks_have_their_names_and_order(tmp_path):
    save(geta=compressed(84.7), ptq=results(84.6), hesso=compressed(86.2), baseline=results(84.3))
    text = summary_table("r")
    assert list(rows_of(text)) == ["dense", "HESSO", "HESSO + rounding (PTQ)", "GETA"]
    assert [nm for nm, _ in rows_of(text).values()] == ["84.3", "86.2", "84.6", "84.7"]
    assert rows_of(text)["dense"][1] == "7.0"  # from the compressing stage's process
    assert "group sparsity 0.500; " in text and text.count("1.5e-06") == 1
    assert str(tmp_path / "runs" / "r") in text and "figures" not in text
    (tmp_path / "figures" / "r").mkdir(parents=True)
    assert str(tmp_path / "figures" / "r") in summary_table("r")


def test_a_run_with_its_baseline_alone_keeps_its_own_times():
    save(baseline=results(84.3))
    text = summary_table("r")
    assert rows_of(text) == {"dense": ("84.3", "2.0")} and "group sparsity" not in text


def test_a_run_without_results_names_the_notebook_to_run():
    with pytest.raises(runs.MissingRunError, match=r"02_baseline_train.ipynb with run='r'"):
        summary_table("r")
