"""What a resumed run may change, and what makes it another run."""

import copy

import pytest

from workbook.config import load_experiment
from workbook.config.run_changes import compare_records, digest, harmless_keys

RECORD = {**load_experiment(None).sections(), "seed": 1, "device": "cpu", "processes": 1}
RECORD["data"] = {"train_digest": "ab", "train_subjects": 24}


def _changed(**values):
    """Return the record with dotted keys (``__`` for the point) set; None takes a key out."""
    record = copy.deepcopy(RECORD)
    for dotted, value in values.items():
        *folders, last = dotted.split("__")
        place = record
        for step in folders:
            place = place.setdefault(step, {})
        place[last] = value
        if value is None:
            del place[last]
    return record


def test_equal_records_have_no_changes_and_one_digest():
    turned = dict(reversed(_changed().items()))
    assert compare_records(RECORD, turned) == []
    assert digest(RECORD) == digest(turned)
    assert len(digest(RECORD)) == 64
    assert digest(RECORD) != digest(_changed(seed=2))


@pytest.mark.parametrize(
    ("key", "value", "harmless"),
    [
        ("trainer_cfg__save_iter", 7, True),
        ("trainer_cfg__restore_hint", "latest", True),
        ("evaluator_cfg__sampler__batch_size", 1, True),
        ("data_cfg__dataset_root", "elsewhere", True),
        ("geta_optimizer_cfg__start_from", "scratch", True),
        ("device", "cuda", True),
        ("processes", 4, True),
        ("seed", 2, False),
        ("data__train_digest", "cd", False),
        ("trainer_cfg__amp_dtype", "bfloat16", False),
        ("trainer_cfg__sampler__batch_size", [2, 2], False),
        ("data_cfg__walker__noise", 0.0, False),
        ("loss_cfg", RECORD["loss_cfg"][:1], False),
        ("geta_optimizer_cfg", None, False),
    ],
)
def test_what_changes_no_weight_is_harmless(key, value, harmless):
    found = compare_records(RECORD, _changed(**{key: value}))
    assert found and all(key.replace("__", ".") in change.key for change in found)
    assert all(change.harmless for change in found) == harmless


def test_what_changes_no_result_changes_no_weight():
    weights, results = (set(harmless_keys(to)) for to in ("weights", "results"))
    assert {"trainer_cfg.find_unused_parameters", "data_cfg.cache"} <= results & weights
    assert "evaluator_cfg" in weights and "evaluator_cfg.restore_hint" in results
    assert {key for key in results if not key.startswith("evaluator_cfg.")} <= weights


def test_a_change_says_both_values_and_a_missing_one_is_none():
    (change,) = compare_records(RECORD, _changed(trainer_cfg__total_iter=400))
    assert str(change) == "trainer_cfg.total_iter: 250 in the checkpoint, 400 here"
    (change,) = compare_records(_changed(seed=None), RECORD)
    assert (change.saved, change.present) == (None, 1)
    losses = copy.deepcopy(RECORD["loss_cfg"])
    losses[0]["margin"] = 0.3
    (change,) = compare_records(RECORD, _changed(loss_cfg=losses))
    assert str(change) == "loss_cfg.0.margin: 0.2 in the checkpoint, 0.3 here"


@pytest.mark.parametrize(
    ("scheduler", "harmless"),
    [("MultiStepLR", True), ("OneCycleLR", False), ("CosineAnnealingLR", False)],
)
def test_a_longer_run_is_the_same_unless_the_schedule_follows_from_its_length(scheduler, harmless):
    saved = _changed(scheduler_cfg={"scheduler": scheduler})
    present = copy.deepcopy(saved)
    present["trainer_cfg"]["total_iter"] = 400
    (change,) = compare_records(saved, present)
    assert change.harmless == harmless
