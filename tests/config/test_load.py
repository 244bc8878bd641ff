"""A value that an experiment cannot take is refused, with the line of the file and the fix."""

import pytest

from workbook.config import ConfigError, load_experiment, notebook_experiment

DATA = "data_cfg: {dataset_root: a, dataset_partition: b}\n"  # line 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "optimizer_cfg:\n  solver: SGD\n  lr: 1e-3\n",
            "optimizer_cfg.lr (line 4): Input should be a valid number (here '1e-3'); "
            "YAML 1.1 reads 1e-3 as text, write 0.001",
        ),
        ("trainer_cfg: {log_iter: 08}\n", "reads 08 as text, write 8"),
        (
            "scheduler_cfg: {scheduler: StepLR}\n",
            "step_size (line 2): Field required",
        ),
        (
            "loss_cfg:\n- type: TripletLoss\n  margin: wide\n",
            "loss_cfg.0.margin (line 4): ",
        ),
        ("trainer_cfg:\n  save_iter: 3\n  log_itr: 3\n", "(line 4): unknown key 'log_itr'; did"),
    ],
)
def test_a_trap_of_yaml_is_refused_with_the_file_the_line_and_the_fix(tmp_path, text, words):
    path = tmp_path / "experiment.yaml"
    path.write_text(DATA + text)
    with pytest.raises(ConfigError) as error:
        load_experiment(path)
    assert str(path) in str(error.value)
    assert words in str(error.value)


def test_an_overridden_value_is_not_blamed_on_the_file(tmp_path):
    path = tmp_path / "experiment.yaml"
    path.write_text(DATA + "trainer_cfg:\n  log_iter: 3\n")
    with pytest.raises(ConfigError, match=r"trainer_cfg\.log_iter: .*here 'x'"):
        load_experiment(path, {"trainer_cfg.log_iter": "x"})


@pytest.mark.parametrize("overrides", ["{}", [1], 5])
def test_overrides_of_another_kind_are_refused_with_how_papermill_passes_them(overrides):
    with pytest.raises(ConfigError, match="papermill passes one with -y '{overrides: {trainer_"):
        notebook_experiment({"overrides": overrides})


def test_overrides_stay_as_the_caller_gave_them():
    section = {"sampler": {"batch_size": [2, 2]}, "total_iter": 300}
    given = {"trainer_cfg": section, "trainer_cfg.total_iter": 400}
    assert load_experiment(None, given).trainer_cfg.total_iter == 400
    assert given["trainer_cfg"] == section and section["total_iter"] == 300
