"""The rules of docs/architecture.md that a machine can check, on the syntax trees of the source."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "scaletrain"

# Floor of each file and package directly in scaletrain/. Those of floor 0 may import each other.
FLOORS = {
    "errors": 0,
    "files": 0,
    "lifetime": 0,
    "log": 0,
    "ranks": 0,
    "protocols": 0,
    "config": 1,
    "planning": 2,
    "hardware": 2,
    "launch": 2,
    "storage": 2,
    "model": 3,
    "data": 3,
    "optim": 3,
    "monitors": 3,
    "preflight": 3,
    "checkpoint": 3,
    "engine": 4,
    "evaluation": 4,
    "corpus": 4,
    "convert": 4,
    "tasks": 5,
    "training": 6,
    "train": 7,
    "finetune": 8,  # is train told to demand --init
}
LAST_FLOOR_WITHOUT_TORCH = 2
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
MAX_FIT_LINES = 80
VAGUE_NAMES = {"utils", "util", "helpers", "helper", "misc", "common"}
# Folders of tests that mirror no package of the library.
OTHER_TESTS = {"integration", "chaos", "hangs", "slurm", "golden", "tools", "benchmarks", "examples"}


def python_files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {name_of(path): ast.parse(path.read_text(), str(path)) for path in python_files("scaletrain")}


def imported_names(module: str) -> Iterator[str]:
    """All names that a module imports, at its top or inside a function, as absolute dotted names."""
    is_package = (ROOT / module.replace(".", "/")).is_dir()
    for node in ast.walk(SOURCES[module]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            here = module.split(".")
            above = here[: len(here) - node.level + is_package] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                yield f"{base}.{alias.name}"


def imported_modules(module: str) -> set[str]:
    """Modules of the project that a module imports."""
    found = set()
    for name in imported_names(module):
        # "a.b.c" is module c of package a.b, or the object c of module a.b.
        target = name if name in SOURCES else name.rpartition(".")[0]
        if target in SOURCES:
            found.add(target)
    return found - {module, "scaletrain"}


def group_of(module: str) -> str:
    return module.split(".")[1]


def floor_of(module: str) -> int:
    return FLOORS[group_of(module)]


def test_every_package_has_a_floor() -> None:
    without = {group_of(module) for module in SOURCES if module != "scaletrain"} - FLOORS.keys()
    assert not without, f"give these a floor, here and in docs/architecture.md: {sorted(without)}"


def test_imports_point_down_or_stay_inside_a_package() -> None:
    wrong = [
        f"{module} (floor {floor_of(module)}) imports {target} (floor {floor_of(target)})"
        for module in SOURCES
        if module != "scaletrain"
        for target in imported_modules(module)
        if floor_of(target) >= max(floor_of(module), 1) and group_of(target) != group_of(module)
    ]
    assert not wrong, "\n".join(wrong)


def test_the_top_package_imports_nothing_of_the_project() -> None:
    assert imported_modules("scaletrain") == set()


def test_there_is_no_import_cycle() -> None:
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, "import cycle: " + " -> ".join([*path[path.index(module) :], module])
        if module not in done:
            for target in sorted(imported_modules(module)):
                visit(target, (*path, module))
            done.add(module)

    for module in SOURCES:
        visit(module, ())


def test_deepspeed_is_imported_in_engine_only() -> None:
    users = {module for module in SOURCES for name in imported_names(module) if name.split(".")[0] == "deepspeed"}
    assert {module for module in users if group_of(module) != "engine"} == set()


def test_lower_floors_and_entry_points_load_without_torch() -> None:
    modules = [
        module
        for module in SOURCES
        if module != "scaletrain" and (floor_of(module) <= LAST_FLOOR_WITHOUT_TORCH or floor_of(module) >= 7)
    ]
    code = f"import importlib, sys\nfor m in {modules!r}: importlib.import_module(m)\nsys.exit('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr or "torch was imported; python -X importtime shows by whom"


def test_lower_floors_never_import_torch_inside_a_function_either() -> None:
    users = {
        module
        for module in SOURCES
        if module != "scaletrain" and floor_of(module) <= LAST_FLOOR_WITHOUT_TORCH
        for name in imported_names(module)
        if name.split(".")[0] == "torch"
    }
    assert users == set()


def test_names_beside_the_entry_point_hide_no_other_module() -> None:
    # The launcher puts the folder of train.py first on sys.path.
    names = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or path.is_dir()}
    others = set(sys.stdlib_module_names) | (packages_distributions().keys() - {"scaletrain"})
    assert (names - {"__init__", "__pycache__"}) & others == set()


@pytest.mark.parametrize("path", python_files("scaletrain", "tools", "benchmarks", "examples", "tests"), ids=name_of)
def test_files_and_functions_are_short(path: Path) -> None:
    text = path.read_text()
    lines = len(text.splitlines())
    assert lines <= MAX_FILE_LINES, (
        f"{path}: {lines} lines, at most {MAX_FILE_LINES}: it does two things, find the seam"
    )
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            limit = MAX_FIT_LINES if node.name == "fit" else MAX_FUNCTION_LINES
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= limit, f"{path}:{node.lineno}: {node.name} has {length} lines, at most {limit}"


def test_names_say_what_is_inside() -> None:
    vague = [
        path
        for path in python_files("scaletrain", "tools", "benchmarks", "examples", "tests")
        if path.stem in VAGUE_NAMES
    ]
    vague += [path for path in PACKAGE.rglob("*") if path.is_dir() and path.name in VAGUE_NAMES]
    assert vague == []


def test_nothing_is_left_to_do_and_nothing_is_global() -> None:
    marks = ("TO" + "DO", "FIX" + "ME", "XX" + "X")
    for path in [
        *python_files("scaletrain", "tools", "benchmarks", "examples", "tests"),
        *(ROOT / "tools").glob("*.sh"),
    ]:
        text = path.read_text()
        assert not [mark for mark in marks if mark in text], f"{path} holds one of {marks}"
    for module, tree in SOURCES.items():
        assert not any(isinstance(node, ast.Global) for node in ast.walk(tree)), f"{module} changes a global variable"


def test_tests_mirror_the_packages() -> None:
    packages = {path.name for path in PACKAGE.iterdir() if any(path.glob("[!_]*.py"))}
    folders = {path.name for path in (ROOT / "tests").iterdir() if path.is_dir() and any(path.glob("test_*.py"))}
    assert folders - OTHER_TESTS <= packages, f"these test no package: {folders - OTHER_TESTS - packages}"
    assert packages <= folders, f"these packages have no tests: {packages - folders}"
