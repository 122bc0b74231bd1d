"""The pages under docs/ that show results have them from the reports that are kept with the rows."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_pages_are_as_new_as_their_reports():
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "study_tables.py", "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_excerpts_have_headings_tables_and_notes_once(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import study_tables

    monkeypatch.setattr(study_tables, "ROOT", tmp_path)
    (tmp_path / "results").mkdir()
    report = tmp_path / "results" / "study.md"
    table = "| a |\n| --- |\n| 1 |"
    report.write_text(
        f"# Study\n\nWhy?\n\n## One\n\n### At once\n\n**Accuracy in %**\n\n{table}\n\nA note.\n\n"
        f"**Costs**\n\n{table}\n\nSeconds.\n\n## Two\n\n**Accuracy in %**\n\n{table}\n\nA note.\n\n"
        "## Three\n\n**Costs**\n\n| b |\n\n## How this was made\n\n    command\n\n- seeds: 0\n"
    )
    assert study_tables.excerpt(report, "Accuracy, Claims").split("\n\n") == [
        "### One",
        "#### At once",
        "**Accuracy in %**",
        table,
        "A note.",
        "### Two",
        "**Accuracy in %**",
        table,
        "### How this was made",
        "    command",
        "- seeds: 0",
    ]
