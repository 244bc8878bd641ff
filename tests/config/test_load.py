"""A file that YAML would read as something else is refused, with the line and the fix."""

import pytest

from gaitlib.config import ConfigError, load_experiment

DATA = "data_cfg: {dataset_root: a, dataset_partition: b}\n"  # line 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("trainer_cfg:\n  total_iter: 036\n", "line 3: 036 is 30 (octal)"),
        ("trainer_cfg:\n  total_iter: 036\n", "write 36, or quote '036'"),
        ("trainer_cfg: {log_iter: 1:30}\n", "line 2: 1:30 is 90 (base 60)"),
        ("trainer_cfg: {log_iter: 1:30}\n", "write 90, or quote '1:30'"),
        ("optimizer_cfg: {lr: 1:30.5}\n", "line 2: 1:30.5 is 90.5 (base 60)"),
        ("trainer_cfg:\n\tlog_iter: 1\n", "line 3: not YAML: a tab; indent with spaces"),
        ("trainer_cfg:\n  - a\n b\n", "line 4: not YAML: "),
        ("loss_cfg: []\nloss_cfg: []\n", "line 3: key 'loss_cfg' stands twice: keep one"),
        ("trainer_cfg: {a: 1, b: 2, a: 3}\n", "line 2: key 'a' stands twice"),
        ("? [a]\n: 1\n", "line 2: found unhashable key"),
        (
            "optimizer_cfg:\n  solver: SGD\n  lr: 1e-3\n",
            "optimizer_cfg.lr (line 4): Input should be a valid number (here '1e-3'); "
            "YAML 1.1 reads 1e-3 as text, write 0.001",
        ),
        ("trainer_cfg: {log_iter: 08}\n", "reads 08 as text, write 8"),
        ("scheduler_cfg: {gamma: 1e-1}\n", "scheduler_cfg (line 2): {'gamma': '1e-1'} is text"),
        (
            "loss_cfg:\n- type: TripletLoss\n  margin: wide\n",
            "loss_cfg.0.TripletLoss.margin (line 4): ",
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


@pytest.mark.parametrize("text", ["0", "-7", "+12", "0x1f", "60000", "0b11"])
def test_numbers_that_mean_what_they_look_are_read(tmp_path, text):
    path = tmp_path / "experiment.yaml"
    path.write_text(f"{DATA}trainer_cfg: {{restore_hint: {text}, log_iter: '036'}}\n")
    with pytest.raises(ConfigError, match="log_iter.*'036'.*write 36"):  # quoted: text, not octal
        load_experiment(path)
    experiment = load_experiment(path, {"trainer_cfg": {"restore_hint": abs(int(text, 0))}})
    assert experiment.trainer_cfg.restore_hint == abs(int(text, 0))


def test_an_overridden_value_is_not_blamed_on_the_file(tmp_path):
    path = tmp_path / "experiment.yaml"
    path.write_text(DATA + "trainer_cfg:\n  log_iter: 3\n")
    with pytest.raises(ConfigError, match=r"trainer_cfg\.log_iter: .*here 'x'"):
        load_experiment(path, {"trainer_cfg.log_iter": "x"})


def test_a_file_that_is_missing_or_no_mapping_is_named(tmp_path):
    with pytest.raises(ConfigError, match="cannot read .*none.yaml: No such file"):
        load_experiment(tmp_path / "none.yaml")
    for content, words in ((b"\xff\xfe\x00", "is not YAML"), (b"", "holds NoneType, not sections")):
        (tmp_path / "odd.yaml").write_bytes(content)
        with pytest.raises(ConfigError, match=words):
            load_experiment(tmp_path / "odd.yaml")
