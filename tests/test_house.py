"""The house rules of CONTRIBUTING.md: who may import whom, one door per outside system, names."""

import ast
import re
import tomllib
from collections import Counter
from pathlib import Path

import networkx as nx
import pytest

ROOT = Path(__file__).resolve().parents[1]
RULES = (ROOT / "CONTRIBUTING.md").read_text()
ROOMS = re.search(r"^    (system < .*)$", RULES, re.M)[1].split(" < ")
DOORS = {
    package: door
    for packages, door in re.findall(
        r"^\| ([\w., ]+) \| ((?:gaitlib|walkers)/\S+\.py) \|$", RULES, re.M
    )
    for package in packages.split(", ")
}
FILES = sorted([*(ROOT / "gaitlib").rglob("*.py"), *(ROOT / "walkers").rglob("*.py")])


def module_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in FILES}


def imports(path):
    """Every module that a file imports, at its top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write absolute imports"
            for alias in node.names:
                assert alias.name != "*", f"{path}: write the names that are imported"
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in MODULES or inner in DOORS else node.module)
        elif isinstance(node, ast.Attribute) and ast.unparse(node) in DOORS:
            found.add(ast.unparse(node))  # torch.distributed
        elif isinstance(node, ast.Call):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if name in ("import_module", "__import__"):
                (argument,) = (*node.args, *(keyword.value for keyword in node.keywords))
                known = isinstance(argument, ast.Constant) or path.name == "oto_compat.py"
                assert known, f"{path}: import a module by its literal name"
                found.add(getattr(argument, "value", ""))
    return found


@pytest.mark.parametrize(
    "source",
    [
        "from importlib import import_module\nimport_module('gaitlib.cli')",
        "import importlib\nimportlib.import_module(name='gaitlib.cli')",
        "__import__('gaitlib.cli')",
        "import gaitlib.cli as other",
        "def f():\n    from gaitlib import cli",
    ],
)
def test_no_spelling_hides_an_import(source, tmp_path):
    path = tmp_path / "module.py"
    path.write_text(source)
    assert "gaitlib.cli" in imports(path)
    path.write_text("import torch\ntorch.distributed.barrier()")
    assert "torch.distributed" in imports(path)
    path.write_text("from torch import distributed")
    assert "torch.distributed" in imports(path)


def room_of(module):
    return module.removeprefix("gaitlib.").partition(".")[0]


def test_the_rooms_are_those_of_the_rules():
    folders = {path.parent.name for path in (ROOT / "gaitlib").glob("*/__init__.py")}
    loose = {path.stem for path in (ROOT / "gaitlib").glob("*.py")} - {"__init__", "__main__"}
    assert folders | loose | {"walkers"} == set(ROOMS)
    assert loose == {"runs", "cli"}


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_no_import_goes_to_the_right(path):
    here = room_of(module_of(path))
    if here in ("gaitlib", "__main__"):
        return
    ours = [m for m in imports(path) if m.partition(".")[0] in ("gaitlib", "walkers")]
    wrong = [m for m in ours if ROOMS.index(room_of(m)) > ROOMS.index(here)]
    assert not wrong, f"{here} may import {ROOMS[: ROOMS.index(here)]}, not {wrong}"


def test_no_two_modules_import_each_other():
    graph = nx.DiGraph(
        (module, other)
        for module, path in MODULES.items()
        for other in imports(path)
        if other in MODULES
    )
    assert list(nx.simple_cycles(graph)) == []


def test_each_outside_system_has_one_door():
    assert len(DOORS) >= 9
    users = {package: set() for package in DOORS}
    for path in FILES:
        for name in imports(path):
            for package in DOORS:
                if name == package or name.startswith(f"{package}."):
                    users[package].add(path.relative_to(ROOT).as_posix())
    for package, door in DOORS.items():
        inside = {user for user in users[package] if user.startswith(f"{package}/")}
        assert users[package] - inside == {door}, f"{package} is imported in {users[package]}"


def test_file_names_are_unique():
    names = Counter(path.name for path in FILES)
    twice = [name for name, count in names.items() if count > 1]
    assert sorted(set(twice) - {"__init__.py", "__main__.py"}) == []


def pins(name):
    """Return the version of each package of a file of constraints."""
    found = re.findall(r"^([\w.-]+)==(\S+)", (ROOT / name).read_text(), re.MULTILINE)
    return {re.sub(r"[-_.]+", "-", package).lower(): version for package, version in found}


def test_the_constraints_with_hashes_pin_the_same_versions_of_all_that_is_needed():
    plain, hashed = pins("constraints.txt"), pins("constraints-hashes.txt")
    assert {name: hashed[name] for name in plain.keys() & hashed.keys()} == {
        name: plain[name] for name in plain.keys() & hashed.keys()
    }, "run make lock"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    needed = {re.match(r"[\w.-]+", entry)[0] for group in groups for entry in group}
    assert {re.sub(r"[-_.]+", "-", name).lower() for name in needed} - {"gaitlib"} <= hashed.keys()
    text = (ROOT / "constraints-hashes.txt").read_text()
    with_hash = re.findall(r"^\S+==\S+ \\\n    --hash=sha256:[0-9a-f]{64}\b", text, re.MULTILINE)
    assert len(with_hash) == len(hashed)
