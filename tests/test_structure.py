"""What holds the house together: import order, the wheel's top level, a light command line."""

import ast
import subprocess
import sys
import zipfile
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Each module of itmfeat may import from its own line and those above it.
ORDER = [
    {"errors"},
    {"parameters"},
    {"locks", "machine", "precision", "ray_connection"},
    {"cache"},
    {"pairs"},
    {"noise"},
    {"residency"},
    {"loader"},
    {"heads"},
    {"losses"},
    {"robust"},
    {"memory"},
    {"config"},
    {"features", "stack", "runs", "retrieval"},
    {"settings"},
    {"members"},
    {"checkpoint"},
    {"training"},
    {"sweeps"},
    {"report"},
    {"loggers"},
    {"api"},
    {"queries", "comparison"},
    {"bench", "doctor", "console"},
    {"cli", "__init__"},
]
MAY_EXTRACT = {"cli", "queries"}
EXTRACTOR_MAY_USE = {"cache", "pairs", "errors", "precision", "ray_connection"}
HEAVY = {"torch", "transformers", "faiss", "h5py", "numpy"}


@cache
def parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text())


@cache
def imports(file: Path, package: str) -> frozenset[str]:
    """First-level modules of a package that a file imports at any depth of nesting."""
    found = set()
    for node in ast.walk(parsed(file)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        parts = (name.split(".") for name in names)
        found |= {part[1] if len(part) > 1 else "" for part in parts if part[0] == package}
    return frozenset(found)


def module_of(file: Path) -> str:
    """The first-level module that a file belongs to."""
    inside = file.relative_to(ROOT / "itmfeat")
    return inside.parts[0].removesuffix(".py")


def test_imports_point_up_the_list() -> None:
    level = {name: place for place, names in enumerate(ORDER) for name in names}
    for file in (ROOT / "itmfeat").rglob("*.py"):
        module = module_of(file)
        for name in imports(file, "itmfeat") & set(level):
            assert level[name] <= level[module], f"{file} imports {name}"
        if module not in MAY_EXTRACT:
            assert not imports(file, "itmfeat_extract"), f"{file} imports the extractor"


def test_the_extractor_is_imported_when_it_is_called() -> None:
    for file in (ROOT / "itmfeat").rglob("*.py"):
        for node in parsed(file).body:
            if isinstance(node, ast.ImportFrom):
                assert not (node.module or "").startswith("itmfeat_extract"), file


def test_every_module_has_its_place() -> None:
    known = set.union(*ORDER)
    found = {module_of(file) for file in (ROOT / "itmfeat").rglob("*.py")}
    assert found <= known, "name the new module in ORDER"


def test_the_extractor_uses_the_cache_alone() -> None:
    for file in (ROOT / "extract" / "itmfeat_extract").rglob("*.py"):
        assert imports(file, "itmfeat") <= EXTRACTOR_MAY_USE, file


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["cache", "--help"]])
def test_help_is_light(arguments: list[str]) -> None:
    code = (
        "import sys\n"
        f"sys.argv = ['itmfeat', *{arguments!r}]\n"
        "from itmfeat.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
        f"heavy = {HEAVY!r} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_the_package_is_light_and_names_what_it_offers() -> None:
    code = f"import sys, itmfeat\nassert not {HEAVY!r} & set(sys.modules)\nassert 'train' in dir(itmfeat)\n"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_wheel_holds_both_packages_and_nothing_else(tmp_path: Path) -> None:
    code = (
        "from hatchling.builders.wheel import WheelBuilder\n"
        f"list(WheelBuilder({str(ROOT)!r}).build(directory={str(tmp_path)!r}, versions=['standard']))\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    top = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {name for name in top if not name.endswith(".dist-info")} == {"itmfeat", "itmfeat_extract"}
    names = zipfile.ZipFile(wheel).namelist()
    assert "itmfeat_extract/pipeline.py" in names
    assert "itmfeat/py.typed" in names
    assert {f"itmfeat/report/html/page.{kind}" for kind in ("html", "css", "js")} <= set(names)


def test_files_and_functions_stay_small() -> None:
    for file in [*(ROOT / "itmfeat").rglob("*.py"), *(ROOT / "extract").rglob("*.py")]:
        text = file.read_text()
        assert text.count("\n") <= 400, file
        for node in ast.walk(parsed(file)):
            if isinstance(node, ast.FunctionDef):
                assert (node.end_lineno or 0) - node.lineno <= 60, f"{file}: {node.name}"
