"""README and docs: links lead somewhere, commands can be parsed, the page of keys is current.

Commands are parsed by the real parsers, files and `make` targets have to exist, and overrides have
to fit their experiment; none of them is run here. RUN says which test runs a command of that kind,
NOT_RUN why none does.
"""

import re
import runpy
import shlex
from pathlib import Path

import nbformat
import papermill
import pytest
import typer
from papermill.cli import papermill as papermill_cli
from torch.distributed.run import get_args_parser

from benchmarks.__main__ import _parser as benchmarks_parser
from workbook import cli
from workbook.system.folders import ROOT

PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md")),
    *(ROOT / "notebooks/README.md", ROOT / "benchmarks/README.md"),
    *sorted((ROOT / "docs").glob("*.md")),
]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
GAITLIB = typer.main.get_command(cli.app)
TARGETS = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))

#: The test that runs a command of this kind, with other names or at smaller size.
RUN = {
    "gaitlib train": "test_notebooks.py::"
    "test_the_command_line_repeats_a_notebook_figure_for_figure",
    "gaitlib test": "test_bad_days.py::test_what_cannot_be_measured_is_named_once_and_null",
    "gaitlib summary": "study/test_runner.py::"
    "test_every_point_leaves_a_row_and_a_run_that_the_other_verbs_read",
    "gaitlib export": "test_notebooks.py::"
    "test_the_command_line_exports_what_the_notebooks_compressed",
    "gaitlib describe": "test_cli.py::test_describe_prints_the_parameters_and_macs_of_every_block",
    "gaitlib walkers": "test_walkers.py::"
    "test_both_command_lines_draw_the_same_walkers_as_the_function",
    "gaitlib pretreat": "test_cli.py::test_raw_walkers_pretreated_are_the_walkers",
    "gaitlib check-resume": "steps/test_check_resume.py::"
    "test_the_command_kills_dense_and_pruning_and_finds_no_difference",
    "gaitlib study": "study/test_runner.py::"
    "test_a_killed_study_keeps_its_points_and_a_killed_workers_point_goes_on_once_more",
    "gaitlib clean": "steps/test_clean.py::"
    "test_leftovers_are_listed_and_removed_and_nothing_else_is",
    "gaitlib walker-video": "recognise/test_commands.py::"
    "test_a_video_of_a_walker_has_names_in_one_command",
    "gaitlib enroll": "recognise/test_commands.py::"
    "test_a_video_of_a_walker_has_names_in_one_command",
    "gaitlib identify": "recognise/test_commands.py::"
    "test_a_video_of_a_walker_has_names_in_one_command",
    "gaitlib forget": "recognise/test_commands.py::test_embeddings_are_kept_named_and_forgotten",
    "gaitlib notebooks": "test_notebooks.py::test_gaitlib_notebooks_executes_one_from_the_shell",
    "torchrun": "steps/test_torchrun.py::"
    "test_two_processes_train_test_and_compress_from_the_command_line",
    "papermill": "test_notebooks.py::test_a_notebook_runs_at_smoke_size",
    "make lab": "test_browser.py::"
    "test_make_lab_opens_on_the_rendered_readme_which_leads_to_every_notebook",
}
#: Why no test runs a command of this kind.
NOT_RUN = {
    "make workbook": "minutes of training; `gaitlib notebooks`, which it calls, is run",
    "make study": "an hour of training; `gaitlib study` and notebook 6 are run",
    "make deploy": "a minute or two; notebook 7 is run at smoke size",
    "make test": "it is what runs the tests; CI calls it (.ci/run)",
    "make browser-test": "it runs tests; CI calls it",
    "make bench": "a quarter of an hour",
    "make gpu-check": "it needs a GPU; --rehearse runs its commands without one, in minutes",
    "make lint": "CI calls it",
    "make notebooks": "minutes of training, and it changes the committed notebooks",
    "make lock": "it asks the package index; tests/test_house.py compares what it wrote",
    "make docs": "it writes the page that test_the_page_of_keys_is_that_of_the_code compares",
    "benchmarks": "a quarter of an hour, on an idle machine",
    "dask": "it waits for workers; tests/study/test_runner.py starts a local cluster instead",
    "mkdir": "the shell's own",
}
#: A command in a sentence: its first two words.
INLINE = r"`((?:make|gaitlib) [\w-]+)"
#: Files of the reader's, which are not part of the project.
THEIRS = re.compile(r"/data/|D:/|gaitbase_da_casiab|GaitBase_DA|mine|dask\.json")


def text_of(path):
    """A page, or the markdown of a notebook, without comments."""
    text = path.read_text()
    if path.suffix == ".ipynb":
        cells = nbformat.read(path, 4).cells
        text = "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    return re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)


def anchors(path):
    """The anchors of a page's headings, as code hosts make them."""
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.DOTALL | re.M)
    headings = re.findall(r"^#+ (.*)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", [*PAGES, *NOTEBOOKS], ids=lambda path: path.name)
def test_links_lead_to_files_and_headings(path):
    text = re.sub(r"```.*?```", "", text_of(path), flags=re.DOTALL)
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    for link in [link for link in links if not link.startswith(("http:", "https:"))]:
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_the_readme_is_short_and_leads_to_every_page():
    text = text_of(ROOT / "README.md")
    assert len(text.splitlines()) <= 150
    pages = [path.name for path in PAGES if path.parent.name == "docs"]
    assert [name for name in pages if f"(docs/{name})" not in text] == []


def test_the_page_of_keys_is_that_of_the_code():
    module = runpy.run_path(str(ROOT / "docs/configuration.py"))
    assert (ROOT / "docs/configuration.md").read_text() == module["page"](), "run `make docs`"


def commands():
    """Every command of a shell block: (page, words)."""
    for path in PAGES:
        for shell, block in re.findall(
            r"^```(bash|powershell)\n(.*?)^```", text_of(path), re.DOTALL | re.M
        ):
            joined = re.sub(r"[\\`]\n\s*", " ", block)
            if shell == "powershell":
                joined = joined.replace("\\", "/").replace(".venv/Scripts", ".venv/bin")
            for line in joined.splitlines():
                words = shlex.split(line.replace("$PWD", "."), comments=True)
                while words and re.match(r"[A-Z_]+=", words[0]):  # of the environment
                    words = words[1:]
                if words:
                    yield path.name, [word for word in words if word != "&"]


COMMANDS = list(commands())


@pytest.mark.parametrize("words", [w for _, w in COMMANDS], ids=[f"{p}: {w}" for p, w in COMMANDS])
def test_a_command_is_one_that_its_program_takes(words):
    assert kind_and_check(words) in RUN.keys() | NOT_RUN.keys()


def test_every_kind_of_command_is_run_by_a_test_that_exists_or_is_not_for_a_reason():
    named = {kind for path in PAGES for kind in re.findall(INLINE, text_of(path))}
    for program, word in map(str.split, named):
        assert word in (TARGETS if program == "make" else GAITLIB.commands), word
    used = {kind_and_check(words) for _, words in COMMANDS} | named
    assert RUN.keys() | NOT_RUN.keys() == used and not RUN.keys() & NOT_RUN.keys()
    for where in RUN.values():
        file, _, test = where.partition("::")
        assert f"\ndef {test}(" in (ROOT / "tests" / file).read_text(), where


def kind_and_check(words):
    """The kind of a command. Its own parser takes it, and its files exist."""
    program, *rest = words
    name = Path(program).name
    if name == "make":
        for word in rest:
            variable, equals, value = word.partition("=")
            assert equals or word in TARGETS, word
            if variable in ("CFGS", "STUDY"):
                check_file(value)
        return f"make {rest[0]}"
    if name == "gaitlib":
        return check_gaitlib(rest)
    if name == "torchrun":
        parsed = get_args_parser().parse_args(rest)
        assert parsed.training_script == "workbook" and parsed.module
        check_gaitlib(parsed.training_script_args)
        return "torchrun"
    if name == "papermill":
        with papermill_cli.make_context("papermill", list(rest)) as context:
            given = context.params
        known = papermill.inspect_notebook(str(ROOT / given["notebook_path"]))
        assert {key for key, _ in given["parameters"]} <= known.keys()
        for file in given["parameters_file"]:
            check_file(file)
        return "papermill"
    if name == "python":
        assert rest[:2] == ["-m", "benchmarks"]
        benchmarks_parser().parse_args(rest[2:])
        return "benchmarks"
    if name == "dask":
        assert rest[0] in ("scheduler", "worker")
    return name


def check_gaitlib(words):
    verb, *arguments = words
    with GAITLIB.commands[verb].make_context(verb, list(arguments)) as context:
        given = context.params
    files = given.get("cfgs") or []
    for file in [files] if isinstance(files, Path) else files:
        if check_file(file) and given.get("override"):
            own = [item for item in given["override"] if not THEIRS.search(item)]
            cli._load(ROOT / file, own)  # the keys and values fit the experiment
    for file in [*(given.get("notebooks") or ()), given.get("file")]:
        if file:
            check_file(file)
    return f"gaitlib {verb}"


def check_file(file):
    """Whether a file is one of the project's; it has to exist then."""
    if THEIRS.search(str(file)):
        return False
    assert (ROOT / file).exists(), file
    return True
