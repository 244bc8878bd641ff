"""The reader gives papermill's values, and refuses what reads as something else than it looks."""

import pytest
from papermill.iorw import read_yaml_file

from workbook.config import ConfigError, read_value, read_yaml
from workbook.config.yaml_reader import read_with_lines
from workbook.system.folders import PARAMS, ROOT

DATA = "data_cfg: {dataset_root: a, dataset_partition: b}\n"  # line 1
#: Each line doubles the line before.
ALIASES = "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40))
LAUGHS = f"a0: &a0 [x, x]\n{ALIASES}"
MERGED = "a0: &a0 {k: 1}\n" + ALIASES.replace("[", "{<<: [").replace("]", "]}")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "trainer_cfg:\n  total_iter: 036\n",
            "036 is 30 (octal) to YAML: write 36, or quote '036'",
        ),
        (
            "trainer_cfg: {log_iter: 1:30}\n",
            "90 (base 60) to YAML: write 90, or quote '1:30'",
        ),
        ("optimizer_cfg: {lr: 1:30.5}\n", "line 2: 1:30.5 is 90.5 (base 60)"),
        ("trainer_cfg:\n\tlog_iter: 1\n", "line 3: not YAML: a tab; indent with spaces"),
        ("trainer_cfg:\n  - a\n b\n", "line 4: not YAML: "),
        ("loss_cfg: []\nloss_cfg: []\n", "line 3: key 'loss_cfg' appears twice: keep one"),
        ("trainer_cfg: {a: 1, b: 2, a: 3}\n", "line 2: key 'a' appears twice"),
        ("a: {<<: {b: 1}, <<: {c: 2}}\n", "line 2: key '<<' appears twice"),
        ("a: &a [*a]\n", "line 2: an alias inside of what it stands for"),
        ("a: !!timestamp 5\n", "line 2: 5 is not a valid timestamp"),
        ("a: " + "[" * 51 + "]" * 51 + "\n", "line 2: nested in more than 50 levels"),
        ("a: " + "[" * 9999 + "]" * 9999 + "\n", "is not YAML: it is nested in more than 50"),
        (LAUGHS, "more than 100000 values, most of them by aliases"),
        (MERGED, "more than 100000 values, most of them by aliases"),
        ("trainer_cfg: {log_iter: 0__7}\n", "0__7 is 7 (octal) to YAML: write 7"),
        ("a: 1\nb: 0x_\n", "line 3: 0x_ is not a valid int: fix it, or quote '0x_'"),
        ("a: 1\nb: 2026-13-01\n", "line 3: 2026-13-01 is not a valid timestamp: fix it, or quote"),
        ("a: \x01\n", "is not YAML: unacceptable character #x0001"),
    ],
)
def test_a_trap_of_yaml_is_refused_with_the_file_the_line_and_the_fix(tmp_path, text, words):
    path = tmp_path / "experiment.yaml"
    path.write_text(DATA + text)
    with pytest.raises(ConfigError) as error:
        read_yaml(path)
    assert str(path) in str(error.value)
    assert words in str(error.value)


def test_a_file_that_is_missing_or_no_mapping_is_named(tmp_path):
    with pytest.raises(ConfigError, match="cannot read .*none.yaml: No such file"):
        read_yaml(tmp_path / "none.yaml")
    for content, words in ((b"\xff\xfe\x00", "is not YAML"), (b"", "holds NoneType, not sections")):
        (tmp_path / "odd.yaml").write_bytes(content)
        with pytest.raises(ConfigError, match=words):
            read_yaml(tmp_path / "odd.yaml")


FILES = [*sorted(PARAMS.rglob("*.yaml")), ROOT / "tests/smoke/experiment.yaml"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_committed_file_has_the_values_that_papermill_gives_a_notebook(path):
    assert repr(read_yaml(path)) == repr(read_yaml_file(str(path)))  # 1 is not 1.0 or True


def test_each_spelling_has_the_value_that_papermill_gives_a_notebook(tmp_path):
    path = tmp_path / "experiment.yaml"
    spellings = "1e-3 1.0e-3 1.0e3 6e4 1_000 08 0o17 0x1f 0b11 +12 -7 1. .5 -.5 .inf .nan"
    spellings += " y n yes No on OFF true ~ null '036' \"1:30\" 1:75 text"
    path.write_text("all:\n" + "".join(f"- {spelling}\n" for spelling in spellings.split()))
    assert repr(read_yaml(path)) == repr(read_yaml_file(str(path)))
    assert read_yaml(path)["all"][:2] == ["1e-3", 0.001]


def test_a_merge_key_takes_over_what_is_not_given_and_keeps_its_lines(tmp_path):
    path = tmp_path / "experiment.yaml"
    path.write_text(
        "first: &first {a: 1, b: 2}\n"
        "deep: {second: &second {<<: *first, b: 3}}\n"
        "third:\n"
        "  <<: *second\n"
        "  c: 4\n"
    )
    values, lines = read_with_lines(path)
    assert values["deep"]["second"] == {"a": 1, "b": 3}
    assert values["third"] == {"a": 1, "b": 3, "c": 4}
    assert [lines["third", key] for key in "abc"] == [1, 2, 5]


def test_every_key_and_entry_has_its_line(tmp_path):
    path = tmp_path / "experiment.yaml"
    path.write_text("a:\n  b: [1,\n    2]\nc:\n- d: 3\n  e: 4\n")
    assert read_with_lines(path)[1] == {
        ("a",): 1,
        ("a", "b"): 2,
        ("a", "b", 0): 2,
        ("a", "b", 1): 3,
        ("c",): 4,
        ("c", 0): 5,
        ("c", 0, "d"): 5,
        ("c", 0, "e"): 6,
    }


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-3", 0.001), ("6e4", 60000.0), ("7", 7), ("[8, 4]", [8, 4]), ("on", True), ("", None)]
    + [("'1e-3'", "1e-3"), ("{a: 1e-3}", {"a": "1e-3"}), ("nan", "nan"), ("1:75", "1:75")],
)
def test_a_value_of_the_command_line_is_read_as_in_a_file_or_as_a_number(text, value):
    assert repr(read_value(text)) == repr(value)


@pytest.mark.parametrize("text", ["036", "1:30", "{a: 1, a: 2}", "[1", "0x_", "\x01"])
def test_what_is_no_value_is_refused(text):
    with pytest.raises(ConfigError) as error:
        read_value(text)
    assert f"{text!r} is not a YAML value: " in str(error.value)
