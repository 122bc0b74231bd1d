"""Print which stage of the two packages imports which, in an order in which each imports only earlier ones.

Usage: python tools/import_graph.py [--files] [PACKAGE …]

Every import counts: at the top, inside functions, for type checkers only, and bare `import neurograft`.
Exits with 1 and prints the circle if there is one.
"""

import argparse
import ast
import sys
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import TypeAlias

SOURCES = Path(__file__).resolve().parent.parent / "src"
PACKAGES = ("neurograft", "neurograft_experiments")
Graph: TypeAlias = Mapping[str, frozenset[str]]
"""importer -> what it imports."""


def module_files(sources: Path = SOURCES) -> dict[str, Path]:
    """Every module of the packages by its dotted name; a folder's `__init__.py` has the folder's name.

    Example:
        >>> module_files()["neurograft.errors"].name, module_files()["neurograft"].name
        ('errors.py', '__init__.py')
    """
    files = sorted(path for package in PACKAGES for path in (sources / package).rglob("*.py"))
    return {".".join(path.relative_to(sources).with_suffix("").parts).removesuffix(".__init__"): path for path in files}


def imported_names(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything a file imports, `from a import b` as `a.b`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                raise SyntaxError(f"line {node.lineno}: relative imports hide the direction")
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def module_of(name: str, modules: Mapping[str, object]) -> str | None:
    """The module of these that an imported name is, or is in; None for a module of others.

    Example:
        >>> module_of("neurograft.errors.OptionError", module_files()), module_of("torch.nn", module_files())
        ('neurograft.errors', None)
    """
    while name and name not in modules:
        name = name.rpartition(".")[0]
    return name or None


def file_graph(sources: Path = SOURCES) -> Graph:
    """Which file of the packages imports which."""
    files = module_files(sources)
    trees = {module: ast.parse(path.read_text(encoding="utf-8")) for module, path in files.items()}
    found = {module: {module_of(name, files) for _, name in imported_names(tree)} for module, tree in trees.items()}
    return {module: frozenset(name for name in names if name) for module, names in found.items()}


def stage_of(module: str) -> str:
    """The folder of a module right below its package, or the module itself where it lies in no folder.

    Example:
        >>> stage_of("neurograft.tracing.rules.views"), stage_of("neurograft.fusing"), stage_of("neurograft")
        ('neurograft.tracing', 'neurograft.fusing', 'neurograft')
    """
    return ".".join(module.split(".")[:2])


def stage_graph(files: Graph) -> Graph:
    """Which stage imports which other one."""
    found: dict[str, set[str]] = {stage_of(module): set() for module in files}
    for module, names in files.items():
        found[stage_of(module)] |= {stage_of(name) for name in names} - {stage_of(module)}
    return {stage: frozenset(names) for stage, names in found.items()}


def circle(graph: Graph) -> list[str]:
    """A circle of imports, its first name repeated at its end; empty if there is none.

    Example:
        >>> circle({"a": frozenset("b"), "b": frozenset("a")}), circle({"a": frozenset("b")})
        (['a', 'b', 'a'], [])
    """
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1][::-1])
    return []


def table(graph: Graph, package: str) -> str:
    """One line per name of the package, each below all that it imports."""
    order = list(TopologicalSorter({name: sorted(graph[name]) for name in sorted(graph)}).static_order())
    rank = {name: i for i, name in enumerate(order)}
    own = [name for name in order if name.split(".")[0] == package]
    short = {name: name.removeprefix(f"{package}.") for name in own}
    wide = max(map(len, short.values()))
    lines = [package]
    for name in own:
        imports = sorted(graph[name], key=lambda other: (other in short, rank[other]))
        lines.append(f"  {short[name]:<{wide}}  {' '.join(short.get(other, other) for other in imports)}".rstrip())
    return "\n".join(lines)


def main() -> None:
    """Print the graph of the packages that are asked for, or the circle."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packages", nargs="*", metavar="PACKAGE", help="neurograft or neurograft_experiments")
    parser.add_argument("--files", action="store_true", help="every file instead of every stage")
    asked = parser.parse_args()
    files = file_graph()
    graph = files if asked.files else stage_graph(files)
    if found := circle(graph):
        sys.exit("a circle: " + " -> ".join(found))
    print("\n\n".join(table(graph, package) for package in asked.packages or PACKAGES))


if __name__ == "__main__":
    main()
