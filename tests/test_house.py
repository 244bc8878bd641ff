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
ROOMS = {
    package: floors.split(" < ")
    for package, floors in re.findall(r"^    (gaitlib|workbook): (.*)$", RULES, re.M)
}
DOORS = {
    package: door
    for packages, door in re.findall(
        r"^\| ([\w., ]+) \| ((?:gaitlib|workbook|walkers)/\S+\.py) \|$", RULES, re.M
    )
    for package in packages.split(", ")
}
PACKAGES = ("gaitlib", "workbook", "walkers")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


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
                by_variable = ("oto_compat.py", "__init__.py", "model_cfg.py")
                known = isinstance(argument, ast.Constant) or path.name in by_variable
                assert known, f"{path}: import a module by its literal name"
                found.add(argument.value if isinstance(argument, ast.Constant) else "")
    return found


def place(module):
    """Return the package and the room of a module."""
    package, _, rest = module.partition(".")
    return package, rest.partition(".")[0]


@pytest.mark.parametrize("package", ROOMS)
def test_the_rooms_are_those_of_the_rules(package):
    folders = {path.parent.name for path in (ROOT / package).glob("*/__init__.py")}
    loose = {path.stem for path in (ROOT / package).glob("*.py")} - {"__init__", "__main__"}
    assert folders | loose == set(ROOMS[package])


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_no_import_goes_to_the_right(path):
    package, room = place(module_of(path))
    ours = [place(m) for m in imports(path) if m.partition(".")[0] in PACKAGES]
    if package in ROOMS and room in ROOMS[package]:
        floors = ROOMS[package]
        wrong = [r for p, r in ours if p == package and floors.index(r) > floors.index(room)]
        assert not wrong, f"{room} may import {floors[: floors.index(room)]}, not {wrong}"
    if package != "workbook":
        assert "workbook" not in {p for p, _ in ours}, "the science does not know the desk"
    if package == "gaitlib":
        assert "walkers" not in {p for p, _ in ours}


@pytest.mark.parametrize("path", [p for p in FILES if place(module_of(p))[0] == "gaitlib"])
def test_the_science_needs_no_tool_of_the_desk(path):
    desk = {"pydantic", "matplotlib", "seaborn", "papermill", "yaml", "typer", "tensorboard"}
    assert not desk & {module.partition(".")[0] for module in imports(path)}


def test_no_two_modules_import_each_other():
    graph = nx.DiGraph(
        (module, other)
        for module, path in MODULES.items()
        for other in imports(path)
        if other in MODULES
    )
    assert list(nx.simple_cycles(graph)) == []


def test_each_outside_system_has_one_door():
    assert len(DOORS) >= 8
    users = {package: set() for package in DOORS}
    for path in FILES:
        for name in imports(path):
            for package in DOORS:
                if name == package or name.startswith(f"{package}."):
                    users[package].add(path.relative_to(ROOT).as_posix())
    for package, door in DOORS.items():
        inside = {user for user in users[package] if user.startswith(f"{package}/")}
        assert users[package] - inside == {door}, f"{package} is imported in {users[package]}"


def test_walkers_have_two_doors_and_import_only_two_rooms_of_gaitlib():
    used = {module: {place(m) for m in imports(path)} for module, path in MODULES.items()}
    users = {m for m, theirs in used.items() if "walkers" in dict(theirs)}
    own = {m for m in used if place(m)[0] == "walkers"}
    assert users - own == {"workbook.cli", "workbook.steps.dataset"}
    rooms = {room for m in own for package, room in used[m] if package == "gaitlib"}
    assert rooms == {"system", "data"}


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
