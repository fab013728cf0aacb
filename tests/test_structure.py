"""The direction of imports, and what must not be imported at all."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.measured import processor_time_of_ended

PACKAGE = Path(__file__).parent.parent / "pipeline"
FILES = sorted(PACKAGE.rglob("*.py"))

# A part is a folder or a loose file of the package; each stage is a part of its own. Each may import the parts named
# here, and no other: what is named stands below it, so that no import runs upwards. `cli` and `__main__` may import
# everything.
WALLS: dict[str, tuple[str, ...]] = {
    "errors": (),
    "core": (),
    "evaluation": (),
    "decoding": (),
    "cache": (),
    "heads": ("evaluation",),
    "sources": ("decoding",),
    "backbones": ("decoding",),
    "fitting": ("heads", "cache", "evaluation"),
    "engines": ("backbones",),
    "selection": ("cache", "sources"),
    "embedding": ("engines", "backbones", "sources", "decoding", "cache"),
    "scouting": ("fitting", "heads", "backbones", "cache", "evaluation"),
    "analysis": ("embedding", "selection", "sources", "cache", "heads", "decoding", "evaluation"),
    "training": ("embedding", "fitting", "heads", "backbones", "sources", "decoding", "cache", "evaluation"),
    "report": ("analysis", "scouting", "fitting", "heads", "sources", "decoding", "cache", "evaluation"),
    "labelling": ("analysis", "sources", "decoding", "cache", "evaluation"),
    "stages.option_types": ("evaluation",),
    "stages.options": ("stages.option_types",),
    "stages.keywords": ("stages.options",),
    "stages.extract": ("embedding", "selection", "cache", "sources", "backbones", "decoding", "engines"),
    "stages.scout": (
        *("report", "scouting", "fitting", "embedding", "sources", "backbones", "cache", "stages.extract"),
    ),
    "stages.doctor": ("engines", "backbones", "sources", "cache"),
    "stages.explanation": ("report", "analysis", "embedding", "heads", "cache", "sources"),
    "stages.predict": ("stages.explanation", "embedding", "heads", "cache", "sources", "backbones", "evaluation"),
    "stages.fit_head": ("report", "fitting", "heads", "embedding", "sources", "cache", "evaluation"),
    "stages.finetune": (
        *("report", "training", "fitting", "heads", "backbones", "embedding", "sources", "cache", "evaluation"),
    ),
    "stages.calls": (
        *("stages.extract", "stages.scout", "stages.fit_head", "stages.predict", "stages.finetune"),
        *("stages.keywords",),
        *("stages.options", "embedding", "training", "fitting", "heads", "sources", "decoding"),
    ),
}
BELOW_ALL = {"errors", "core"}
ONLY = {
    ("sources", "decoding"): {"pipeline.decoding.formats"},
    ("engines", "backbones"): {"pipeline.backbones.base", "pipeline.backbones.network"},
}
"""The modules of another part that a part may know."""


def imports(file: Path) -> set[str]:
    """Return the names of all modules that a file imports, also inside functions and for type checking."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            modules = inner & MODULES.keys()
            found |= modules or {node.module}
    return found


def module_name(file: Path) -> str:
    parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(file): file for file in FILES}
OWN_IMPORTS = {name: (imports(file) & MODULES.keys()) - {name} for name, file in MODULES.items()}


def part_of(module: str) -> str:
    names = module.split(".")[1:]
    return ".".join(names[:2] if names[:1] == ["stages"] else names[:1])


def test_every_import_is_one_that_the_walls_allow() -> None:
    wrong = []
    for name, imported in OWN_IMPORTS.items():
        part = part_of(name)
        if part in ("", "cli", "__main__", "stages"):
            continue
        allowed = {part, *WALLS[part], *(BELOW_ALL if part != "errors" else ())}
        if part == "core":
            allowed = {"core", "errors"}
        wrong += [f"{name} imports {other}" for other in imported if part_of(other) not in allowed]
    assert not wrong


def test_a_part_knows_only_few_modules_of_some_parts() -> None:
    for name, imported in OWN_IMPORTS.items():
        for other in imported:
            only = ONLY.get((part_of(name), part_of(other)))
            assert only is None or other in only, f"{name} imports {other}, and may import {only}"


def test_the_walls_have_no_arrow_upwards() -> None:
    below: set[str] = set()
    for part, allowed in WALLS.items():  # a part may name only parts that stand before it
        assert set(allowed) <= below, f"{part} may import {set(allowed) - below}, which do not stand below it"
        below.add(part)


def test_no_modules_import_each_other_in_a_circle() -> None:
    # Modules are removed as soon as all that they import is: what stays stands in a circle, or above one.
    left = {name: set(imported) for name, imported in OWN_IMPORTS.items()}
    while free := [name for name, imported in left.items() if not imported & left.keys()]:
        for name in free:
            del left[name]
    circle = {name for name in left if _reaches(name, name)}
    assert not circle


def _reaches(start: str, goal: str) -> bool:
    seen: set[str] = set()
    pending = list(OWN_IMPORTS[start])
    while pending:
        name = pending.pop()
        if name == goal:
            return True
        if name not in seen:
            seen.add(name)
            pending += OWN_IMPORTS[name]
    return False


def test_siblings_are_imported_by_name_and_not_through_their_package() -> None:
    for name, imported in OWN_IMPORTS.items():
        package = name.rpartition(".")[0]
        if MODULES[name].name != "__init__.py" and package != "pipeline":
            assert package not in imported, f"{name} imports {package}"


def test_only_the_cache_knows_hdf5() -> None:
    users = {file.relative_to(PACKAGE) for file in FILES if "h5py" in {n.split(".")[0] for n in imports(file)}}
    # Images may lie in an HDF5 file as in any other archive; that source knows nothing of caches.
    images = Path("sources", "hdf5.py")
    assert images in users
    assert {file.parts[0] for file in users - {images}} == {"cache"}


def test_only_the_command_line_prints() -> None:
    for file in FILES:
        if (
            file.parent.name == "cli" or file.name == "sandbox.py"
        ):  # the sandbox is a process of its own that answers on standard output
            continue
        calls = [
            n for n in ast.walk(ast.parse(file.read_text())) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)
        ]
        assert "print" not in {call.func.id for call in calls if isinstance(call.func, ast.Name)}, file


@pytest.mark.parametrize(
    "code",
    [
        "import pipeline",
        "from pipeline import open_cache",
        "import pipeline; pipeline.open",
        "import pipeline.selection.export",
        "import pipeline.cache.info",
        "import pipeline.cache.verify",
        "import pipeline.cli",
        "import pipeline; pipeline.extract; pipeline.scout; pipeline.fit_head; pipeline.predict; pipeline.finetune",
        "from pipeline.heads import load_head",
        "import pipeline.decoding.worker",
    ],
)
def test_torch_is_not_imported_where_it_is_not_needed(code: str) -> None:
    check = f"{code}; import sys; assert not {{'torch', 'sklearn', 'timm'}} & set(sys.modules), sorted(sys.modules)"
    subprocess.run([sys.executable, "-c", check], check=True, cwd=PACKAGE.parent)


def test_pandas_is_not_imported_to_open_a_cache() -> None:
    check = "import pipeline; pipeline.open; import sys; assert not {'pandas', 'pyarrow'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", check], check=True, cwd=PACKAGE.parent)


def test_help_is_quick() -> None:
    times = []
    for _ in range(3):
        before = processor_time_of_ended()
        subprocess.run(
            [sys.executable, "-m", "pipeline", "--help"], check=True, stdout=subprocess.DEVNULL, cwd=PACKAGE.parent
        )
        times.append(processor_time_of_ended() - before)
    assert min(times) < 0.3


def functions(file: Path) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    tree = ast.parse(file.read_text())
    return [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]


def test_a_function_has_at_most_sixty_lines() -> None:
    long = [
        f"{file.relative_to(PACKAGE)}: {node.name} has {lines} lines"
        for file in FILES
        for node in functions(file)
        if (lines := (node.end_lineno or 0) - node.lineno + 1) > 60
    ]
    assert not long


def test_an_import_inside_a_function_has_its_reason_beside_it() -> None:
    """The commands import their stages inside, which the docstring of the command line explains."""
    bare = []
    for file in FILES:
        if file.parent.name == "cli":
            continue
        lines = file.read_text().splitlines()
        for node in (inner for function in functions(file) for inner in ast.walk(function)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pipeline"):
                here = lines[node.lineno - 2 : node.end_lineno]
                bare += [] if any("#" in line for line in here) else [f"{file.relative_to(PACKAGE)}:{node.lineno}"]
    assert not bare
