"""What the README and the pages in docs/ show is run: Python as it stands, commands on a small demonstration."""

import os
import pkgutil
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import neurograft
from neurograft.methods import METHODS
from neurograft_experiments.demo import Budget, run_demo
from tests.test_import_direction import RANKS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]


def blocks(path, language):
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("path", [path for path in PAGES if blocks(path, "python")], ids=lambda path: path.name)
def test_python_examples_run(path, monkeypatch, capsys):
    methods = dict(METHODS)
    names = {"__name__": "example"}
    try:
        for number, block in enumerate(blocks(path, "python")):
            exec(compile(block, f"{path.name}, example {number}", "exec"), names)
    finally:
        METHODS.clear()
        METHODS.update(methods)


def commands():
    lines = [line for path in PAGES for block in blocks(path, "bash") for line in block.splitlines()]
    return [line.partition("#")[0].strip() for line in lines if line.strip()]


def test_make_targets_exist():
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    asked = {shlex.split(line)[1] for line in commands() if line.startswith("make ")}
    mentioned = {name for path in PAGES for name in re.findall(r"`make ([a-z-]+)`", path.read_text(encoding="utf-8"))}
    assert {"demo", "test"} <= asked
    assert asked | mentioned <= set(targets)


def test_commands_of_the_readme_run(tmp_path, monkeypatch, capsys):
    from neurograft.command_line.app import main

    monkeypatch.chdir(tmp_path)
    run_demo("digits", Path("runs/demo"), networks=("mlp",), budget=Budget(members=2, member_epochs=1, tuning_epochs=1))
    lines = [line for line in commands() if line.startswith("neurograft ")]
    assert len(lines) >= 3
    for line in lines:
        monkeypatch.setattr("sys.argv", shlex.split(line))
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code, f"{line}\n{capsys.readouterr().err}"
    assert Path("runs/fused.safetensors").is_file()


def test_every_method_is_in_the_tables():
    for page in (ROOT / "README.md", ROOT / "docs" / "how-it-works.md"):
        rows = re.findall(r"^\| `(\w+)` \|", page.read_text(encoding="utf-8"), re.MULTILINE)
        assert set(METHODS) <= set(rows), page.name


def test_links_lead_somewhere():
    for path in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", path.read_text(encoding="utf-8")):
            if not target.startswith("https://"):
                assert (path.parent / target).exists(), f"{path.name}: {target}"


def table_of(page, heading):
    """The cells of the first table below a heading."""
    text = page.read_text(encoding="utf-8").partition(f"\n## {heading}\n" if heading else "\n")[2]
    rows = re.findall(r"^\| (.*) \|$", text.partition("\n## ")[0], re.MULTILINE)[2:]
    return [row.split(" | ") for row in rows]


def test_where_is_what_is_the_tree_in_the_order_of_the_stages():
    places = " ".join(row[0] for row in table_of(DOCS / "design.md", "Where is what"))
    named = re.findall(r"`(.+?)`", places)
    library = ROOT / "src" / "neurograft"
    files = {path.name for path in library.glob("*.py") if not path.name.startswith("_")}
    folders = {path.parent.name for path in library.glob("*/__init__.py")}
    assert sorted(named) == sorted(files | folders), 'bring "Where is what" in docs/design.md up to date'
    ranks = [RANKS[f"neurograft.{name.removesuffix('.py')}"][1] for name in named]
    assert ranks == sorted(ranks)


def test_names_in_the_glossary_exist():
    rows = table_of(DOCS / "glossary.md", "")
    assert len(rows) > 24
    terms = [row[0] for row in rows]
    assert terms == sorted(terms, key=str.lower)
    for term, meaning, cell in rows:
        name = cell.strip("`")
        owner, _, attribute = name.rpartition(".")
        fields = getattr(pkgutil.resolve_name(owner), "__annotations__", {})
        assert attribute in fields or pkgutil.resolve_name(name) is not None, name
        assert meaning.count(". ") == 0, f"{term}: one sentence"


PATTERNS = (
    "src/**/*.py",
    "tests/**/*.py",
    "tools/*.py",
    "benchmarks/*.py",
    "docs/*.md",
    "*.md",
    "examples/*",
    "results/**/*.md",
)
TEXTS = [path for pattern in PATTERNS for path in sorted(ROOT.glob(pattern)) if path != Path(__file__)]
OUTSIDE = r"\bDESIGN\b|\b(FIELD|TRACING|SYMMETRY|STYLE)\.md|\bissue \d|\.\./shared|/work/|--output /tmp"


def test_nothing_outside_the_repository_is_cited():
    for path in TEXTS:
        found = re.search(OUTSIDE, path.read_text(encoding="utf-8"))
        assert not found, f"{path}: {found}"


def test_sources_are_papers_or_headings_of_the_design_page():
    headings = re.findall(r"^## (.*)$", (DOCS / "design.md").read_text(encoding="utf-8"), re.MULTILINE)
    for path in TEXTS:
        text = re.sub(r"\s+", " ", path.read_text(encoding="utf-8"))
        for heading in re.findall(r"design\.md, \"(.*?)\"", text):
            assert heading in headings, f"{path}: {heading}"
        for source in re.findall(r"(?<=[.\]] )Source: (.{100})", text) if path.suffix == ".py" else ():
            assert re.search(r"arXiv|design\.md|https://|\b(19|20)\d\d\b", source), f"{path}: {source}"


def test_every_public_name_has_its_place_on_the_site():
    from tools.site_pages import PUBLIC

    names = [name for group in PUBLIC.values() for name in group]
    assert sorted(names) == sorted(neurograft._PUBLIC)


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert (built.returncode, built.stderr) == (0, "")
    api = (tmp_path / "site" / "api" / "index.html").read_text(encoding="utf-8")
    assert all(f'id="neurograft.{name}"' in api for name in neurograft._PUBLIC)
