"""What the README and the pages in docs/ show is run: Python as it stands, commands on a small demonstration."""

import re
import shlex
from pathlib import Path

import pytest

from neurograft.methods import METHODS
from neurograft_experiments.demo import Budget, run_demo

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


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
