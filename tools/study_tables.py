"""Put tables of study reports into the pages under docs/ that name them.

Usage: python tools/study_tables.py [--check]

A page holds

    <!-- results/medium/recovery.md: Claims, Test accuracy -->
    <!-- end -->

and what is between the two lines is written here: the headings of that report, its tables whose titles begin so, notes
once, and how it was made. With --check nothing is written; the exit code says
whether a page is older than its report.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
BLOCK = re.compile(r"(<!-- (results/\S+\.md): ([^>]+?) -->\n).*?(<!-- end -->)", re.DOTALL)


def filled(page: str) -> str:
    """A page with every block as its report has it now."""
    return BLOCK.sub(lambda found: f"{found[1]}\n{excerpt(ROOT / found[2], found[3])}\n\n{found[4]}", page)


def excerpt(report: Path, titles: str) -> str:
    """The part of a report that a page shows, its headings one level deeper."""
    wanted = tuple(title.strip() for title in titles.split(","))
    said, parts = set(), []
    for part in _parts(report.read_text(encoding="utf-8"), wanted):
        if part not in said or not part[0].isalpha():  # a sentence once, however many tables it stands under
            parts.append(part)
        said.add(part)
    return "\n\n".join(parts)


def _parts(report: str, wanted: tuple[str, ...]) -> Iterator[str]:
    headings: list[str] = []  # those that nothing was shown under yet
    title = ""
    for block in report.strip().split("\n\n")[2:]:  # without the report's title and question
        if block.startswith("#"):
            level = len(block.split()[0])
            headings = [*(above for above in headings if len(above.split()[0]) <= level), f"#{block}"]
            title = ""
        elif block.startswith("**") and block.endswith("**"):
            title = block if block.strip("*").startswith(wanted) else ""
        elif title:
            yield from headings
            headings = []
            if block.startswith("|"):
                yield title
            yield block
        if block == "## How this was made":
            title = block  # all that follows is shown


def main() -> None:
    """Write the pages, or say which are old."""
    stale = []
    for page in sorted(DOCS.glob("*.md")):
        text = page.read_text(encoding="utf-8")
        new = filled(text)
        if new != text:
            stale.append(page.name)
            if "--check" not in sys.argv[1:]:
                page.write_text(new, encoding="utf-8")
                print(f"wrote {page.relative_to(ROOT)}")
    if stale and "--check" in sys.argv[1:]:
        raise SystemExit(f"older than their reports: {', '.join(stale)}; run python tools/study_tables.py")


if __name__ == "__main__":
    main()
