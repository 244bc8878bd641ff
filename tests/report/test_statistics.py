"""Statistics of silhouettes: energy images, filled area, width and inventory, worked by hand."""

import numpy as np
import pytest

from gaitlib.data.casia_b import SilhouetteDataset, index_tree
from gaitlib.data.sequence_file import write_sequence
from workbook.report.statistics import (
    energy_images,
    foreground,
    inventory,
    mean_foreground,
    report,
)


@pytest.fixture(autouse=True)
def _numbers_instead_of_silhouettes(monkeypatch):
    """Frames of few pixels can be added up by hand, but are no silhouettes."""
    monkeypatch.setattr("gaitlib.data.sequence_file.mask_fault", lambda frames: "")


def clip(*levels):
    """Return one 2 x 4 frame per level; a level is the grey of all its pixels."""
    return np.stack([np.full((2, 4), level, np.uint8) for level in levels])


def dataset(root, sequences):
    """Write sequences, ``subject/type/view`` to clip, and open them."""
    for name, frames in sequences.items():
        view = name.rpartition("/")[2]
        write_sequence(root / name / f"{view}.pkl", frames)
    return SilhouetteDataset(index_tree(root))


def test_energy_images_are_means_over_sequences_by_condition_then_view(tmp_path):
    found = energy_images(
        dataset(
            tmp_path,
            {
                "001/cl-01/000": clip(30),
                "001/bg-01/090": clip(20),
                "001/nm-01/090": clip(10, 20),  # mean 15
                "001/nm-02/090": clip(40, 40, 100),  # mean 60
                "001/nm-01/000": clip(5),
                "002/nm-01/018": clip(99),  # another subject
            },
        ),
        "001",
    )
    assert list(found) == [("NM", "000"), ("NM", "090"), ("BG", "090"), ("CL", "000")]
    means = [image.mean() for image in found.values()]
    assert means == [5, (15 + 60) / 2, 20, 30]  # each sequence counts once, whatever its length
    assert all(image.shape == (2, 4) for image in found.values())


def test_the_foreground_counts_grey_by_its_level_and_the_width_from_edge_to_edge(tmp_path):
    wide = np.zeros((2, 2, 4), np.uint8)
    wide[0, 0, [0, 3]] = 255  # columns 0 and 3: 4 wide, with a hole between
    wide[1, 1, 2] = 51  # one column; a fifth of white
    parts = dataset(tmp_path, {"001/nm-01/000": wide, "001/cl-01/090": clip(255)})
    table = foreground(parts).set_index("type")
    assert table.loc["nm-01", "view"] == "000" and table.loc["cl-01", "view"] == "090"
    assert table.loc["nm-01", "filled"] == pytest.approx((2 + 0.2) / 16)
    assert table.loc["nm-01", "width"] == (4 + 1) / 2
    assert table.loc["cl-01", ["filled", "width"]].tolist() == [1, 4]


@pytest.fixture
def parts(tmp_path):
    """Return two parts: subject 001 with 3 of 110 sequences, one damaged, and 002 with one."""
    damaged = tmp_path / "train" / "001" / "nm-01" / "018" / "018.pkl"
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(b"")
    train = {"001/nm-01/000": clip(*range(5)), "001/nm-01/036": clip(1, 2, 3, 4)}
    return {
        "train": dataset(tmp_path / "train", train),
        "test": dataset(tmp_path / "test", {"002/nm-01/000": clip(*range(7))}),
    }


def test_the_report_lists_what_is_missing_short_and_unreadable(parts):
    table = report(parts)
    counts = table.groupby(["split", "kind"]).size().to_dict()
    # a damaged sequence is listed twice: it is not among the good ones, and says why
    assert counts == {
        ("train", "missing"): 108,
        ("train", "short"): 1,
        ("train", "unreadable"): 1,
        ("test", "missing"): 109,
    }
    short = table[table["kind"] == "short"].iloc[0]
    assert (short["view"], short["problem"]) == ("036", "4 frames")
    unreadable = table[table["kind"] == "unreadable"].iloc[0]
    assert (unreadable["view"], unreadable["subject"]) == ("018", "001")
    assert "0 bytes" in unreadable["problem"]
    assert (report(parts, short=4)["kind"] != "short").all()  # 4 frames are not fewer than 4


def test_another_data_set_lacks_what_half_of_its_subjects_have(tmp_path):
    names = ["1/00/000", "1/01/000", "2/00/000", "2/01/000", "3/00/000", "3/00/seen-once"]
    part = dataset(tmp_path, {name: clip(*range(5)) for name in names})
    missing = report({"test": part}).query("kind == 'missing'")
    assert missing[["subject", "type", "view"]].to_numpy().tolist() == [["3", "01", "000"]]
    assert list(energy_images(part, "3")) == [("00", "000"), ("00", "seen-once")]
    assert mean_foreground(foreground(part)).index.tolist() == ["00", "01"]


def test_the_inventory_counts_each_part(parts):
    train, test = inventory(parts).to_dict("records")
    assert train == {
        **{"split": "train", "subjects": 1, "sequences": 2, "frames": 9},
        **{"missing": 108, "short": 1, "unreadable": 1},
    }
    assert test == {
        **{"split": "test", "subjects": 1, "sequences": 1, "frames": 7},
        **{"missing": 109, "short": 0, "unreadable": 0},
    }
