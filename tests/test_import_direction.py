"""A file imports only from the stages above its own (DESIGN, section 2)."""

import ast
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[1] / "src" / "neurograft"
STAGES = [
    "errors",
    "inputs preserve_state checkpoints factories options plugins",
    "axes",
    "tracing",
    "members",
    "plans",
    "alignment",
    "selection",
    "methods",
    "applying",
    "evaluating",
    "recovery",
    "fusing",
    "training",
    "reporting",
    "advising",
    "command_line",
]
RANK = {name: rank for rank, names in enumerate(STAGES) for name in names.split()}
# the package itself and `python -m neurograft` are no stages
FILES = sorted(path for path in SOURCES.rglob("*.py") if path not in {SOURCES / "__init__.py", SOURCES / "__main__.py"})


def stage_of(path: Path) -> str:
    return path.relative_to(SOURCES).parts[0].removesuffix(".py")


def test_the_library_never_imports_the_experiments():
    for path in SOURCES.rglob("*.py"):
        names = [name for _, name in modules(ast.parse(path.read_text(encoding="utf-8")))]
        assert not [name for name in names if name.split(".")[0] == "neurograft_experiments"], path


def modules(tree: ast.AST) -> list[tuple[int, str]]:
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the direction"
            found.append((node.lineno, node.module or ""))
    return found


def imported(tree: ast.AST) -> list[tuple[int, str]]:
    return [(line, name.split(".")[1]) for line, name in modules(tree) if name.startswith("neurograft.")]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCES)))
def test_imports_point_to_earlier_stages(path):
    stage = stage_of(path)
    assert stage in RANK, f"{stage} has no place in the order; add it to STAGES"
    for line, name in imported(ast.parse(path.read_text(encoding="utf-8"))):
        assert RANK[name] <= RANK[stage], f"{path}:{line}: {stage} imports {name}, a later stage"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCES)))
def test_no_heavy_import_at_the_top(path):
    heavy = {"ot", "sklearn", "matplotlib", "transformers", "datasets", "accelerate", "ray", "pyarrow", "PIL"}
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = {
        name.split(".")[0]
        for node in tree.body
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert not names & heavy


def test_no_file_is_called_after_nothing():
    vague = {"utils", "util", "helpers", "helper", "misc", "common", "base", "core"}
    assert not [path for path in FILES if path.stem in vague or path.parent.name in vague]
