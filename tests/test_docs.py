"""README and docs: links lead somewhere, commands can be parsed, the page of keys is current.

Commands are parsed by the real parsers, files and `make` targets have to exist, and overrides have
to fit their experiment; none of them is run here.
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

#: A command in a sentence: its first two words.
INLINE = r"`(make|gaitlib) ([\w-]+)"
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
    """Its own parser takes it, and its files exist."""
    program, *rest = words
    name = Path(program).name
    if name == "make":
        check_target(rest)
    elif name == "gaitlib":
        check_gaitlib(rest)
    elif name == "torchrun":
        parsed = get_args_parser().parse_args(rest)
        assert parsed.training_script == "workbook" and parsed.module
        check_gaitlib(parsed.training_script_args)
    elif name == "papermill":
        with papermill_cli.make_context("papermill", list(rest)) as context:
            given = context.params
        known = papermill.inspect_notebook(str(ROOT / given["notebook_path"]))
        assert {key for key, _ in given["parameters"]} <= known.keys()
        for file in given["parameters_file"]:
            check_file(file)
    elif name == "python":
        assert rest[:2] == ["-m", "benchmarks"]
        benchmarks_parser().parse_args(rest[2:])
    else:
        assert name == "mkdir" or rest[0] in ("scheduler", "worker") and name == "dask"


def test_a_command_in_a_sentence_exists():
    for program, word in {w for p in PAGES for w in re.findall(INLINE, text_of(p))}:
        assert word in (TARGETS if program == "make" else GAITLIB.commands), word


def check_target(words):
    for word in words:
        variable, equals, value = word.partition("=")
        assert equals or word in TARGETS, word
        if variable in ("CFGS", "STUDY"):
            check_file(value)


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


def check_file(file):
    """Whether a file is one of the project's; it has to exist then."""
    if THEIRS.search(str(file)):
        return False
    assert (ROOT / file).exists(), file
    return True
