"""Enrol, forget and identify; the threshold is that of a false-accept rate on strangers' walks."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from gaitlib.system.errors import UserError
from workbook.recognise import private_files
from workbook.recognise.gallery import UNKNOWN, new_gallery, read_gallery, threshold_for
from workbook.recognise.private_files import Embeddings, read_embeddings


def at(*places, subjects="", network="n"):
    """Walks whose embeddings are single numbers: distances are differences."""
    features = torch.tensor(places, dtype=torch.float32).reshape(-1, 1, 1)
    rows = [(s, "nm-01", "090", 9, "x") for s in subjects or ["?"] * len(places)]
    columns = ["subject", "type", "view", "frames", "source"]
    return Embeddings(pd.DataFrame(rows, columns=columns), features, network)


@pytest.fixture
def gallery():
    return new_gallery("n").enroll(["ann", "ann", "bob"], at(0, 10, 20))


def test_a_walk_has_the_name_of_the_nearest_enrolled_walk(gallery):
    found = gallery.identify(at(9, 14, 16, 100))
    assert found["name"].tolist() == ["ann", "ann", "bob", "bob"]  # no threshold yet
    assert found["distance"].tolist() == [1, 4, 4, 80]
    assert found["nearest"][0] == [("ann", 1.0), ("bob", 11.0)]  # the nearest walk of each person
    limited = gallery.identify(at(9, 14, 100), threshold=3.0)
    assert limited["name"].tolist() == ["ann", UNKNOWN, UNKNOWN]


@pytest.mark.parametrize(
    ("rate", "accepted"), [(0.0, 0), (0.2, 1), (0.39, 1), (0.4, 2), (0.6, 3), (0.99, 4)]
)
def test_the_threshold_lets_no_more_strangers_pass_than_asked(rate, accepted):
    nearest = torch.tensor([3.0, 1.0, 5.0, 4.0, 2.0])
    assert (nearest <= threshold_for(nearest, rate)).sum() == accepted


def test_strangers_set_the_threshold_and_enrolling_more_people_unsets_it(gallery):
    known = gallery.with_threshold(at(23, 26, 30, 40, subjects="wxyz"), 0.25)
    assert 3 <= known.threshold < 6  # one of four is at 3, the next at 6
    assert known.false_accepts == {"asked": 0.25, "reached": 0.25, "walks": 4}
    assert known.identify(at(23, 26))["name"].tolist() == ["bob", UNKNOWN]
    assert known.forget("ann").threshold == known.threshold
    assert known.enroll(["cat"], at(50)).threshold is None
    with pytest.raises(ValueError, match="not enrolled, and bob is: leave them out"):
        gallery.with_threshold(at(21, subjects=["bob"]), 0.1)
    with pytest.raises(ValueError, match="1 of 2 held-out walks are enrolled .* first is w/nm-01/"):
        gallery.with_threshold(at(23, 20, subjects="vw"), 0.1)


def test_a_rate_is_a_share_a_threshold_a_distance_and_a_name_a_word(gallery):
    for wrong in (-0.1, float("nan")):
        with pytest.raises(ValueError, match="give a share from 0 to below 1"):
            gallery.with_threshold(at(23, subjects="w"), wrong)
        with pytest.raises(ValueError, match="give a distance, 0 or more"):
            gallery.identify(at(9), wrong)
    for name in ("", " ", " ann", "ann\n", UNKNOWN):
        with pytest.raises(ValueError, match="cannot be a person's name: it is empty"):
            gallery.enroll([name], at(50))


def test_one_walk_has_one_name(gallery):
    assert gallery.enroll(["ann"], at(10)).names == ("ann", "ann", "bob", "ann")
    for names, places in ((["cat"], [10]), (["cat", "dan"], [50, 50])):
        with pytest.raises(ValueError, match=f"same walk .* as '{names[-1]}': leave it out"):
            gallery.enroll(names, at(*places))


def test_who_is_forgotten_leaves_no_number_behind(gallery, tmp_path):
    path = gallery.write(tmp_path / "people.gallery")
    before = path.read_bytes()
    read_gallery(path).forget("ann").write(path)
    left = read_gallery(path)
    assert left.names == ("bob",) and left.features.tolist() == [[[20.0]]]
    assert b"ann" in before and b"ann" not in path.read_bytes()
    assert np.float32(10).tobytes() in before
    assert np.float32(10).tobytes() not in path.read_bytes()
    assert [p.name for p in tmp_path.iterdir()] == ["people.gallery"]
    with pytest.raises(ValueError, match="nobody is called 'ann'; known are bob"):
        left.forget("ann")
    with pytest.raises(ValueError, match="nobody is enrolled"):
        left.forget("bob").identify(at(1))


def test_files_are_their_owners_alone_and_come_back_as_they_were(gallery, tmp_path):
    known = gallery.with_threshold(at(23, subjects="w"), 0.0)
    walks = at(1, 2, subjects="ab")
    for path in (known.write(tmp_path / "g"), *walks.write(tmp_path / "walks")):
        assert path.stat().st_mode & 0o777 == 0o600
    again = read_gallery(tmp_path / "g")
    assert (again.names, again.threshold, again.network) == (known.names, known.threshold, "n")
    assert again.false_accepts == known.false_accepts
    assert torch.equal(again.features, known.features)
    table = pd.read_csv(tmp_path / "walks.csv")
    assert table["subject"].tolist() == ["a", "b"] and table["row"].tolist() == [0, 1]
    assert torch.equal(read_embeddings(tmp_path / "walks.safetensors").features, walks.features)


def test_networks_and_kinds_of_files_are_not_mixed(gallery, tmp_path):
    path, _ = at(1).write(tmp_path / "walks")
    with pytest.raises(ValueError, match="no gallery file, but of embeddings"):
        read_gallery(path)
    (tmp_path / "bad").write_bytes(path.read_bytes()[:-3])
    with pytest.raises(ValueError, match="bad is damaged"):
        read_gallery(tmp_path / "bad")
    with pytest.raises(ValueError, match="of network n and the walks of other"):
        gallery.identify(at(1, network="other"))


WHOLE = {"kind": "gallery", "format": 1, "network": "n", "rows": [{"name": "ann"}]}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([], "is no gallery file"),
        ({"kind": "embeddings"}, "is no gallery file, but of embeddings"),
        ({"kind": "gallery"}, "has format None"),
        (WHOLE | {"rows": ["ann"]}, "is damaged"),
        (WHOLE | {"rows": [{"name": ["ann"]}]}, "its names or its threshold are none"),
        (WHOLE | {"threshold": float("nan")}, "its names or its threshold are none"),
    ],
)
def test_a_gallery_that_someone_changed_is_refused_in_one_line(tmp_path, content, words):
    path = tmp_path / "people.gallery"
    tensors = {"embeddings": torch.ones(1, 2, 2)}
    save_file(tensors, path, {private_files._METADATA: json.dumps(content)})
    with pytest.raises(UserError, match=words):
        read_gallery(path)
    save_file(tensors, path, {private_files._METADATA: json.dumps(WHOLE)})
    assert read_gallery(path).names == ("ann",)
