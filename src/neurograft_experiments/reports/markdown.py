"""A document as Markdown, as a repository shows it: words and tables, without its pictures."""

from collections.abc import Sequence

from neurograft.reporting.document import Code, Document, Facts, Heading, Links, Paragraph, Part
from neurograft.reporting.tables import Table


def markdown_page(document: Document) -> str:
    """The document's text and tables; pictures are on its page alone.

    Example:
        >>> print(markdown_page(Document("Report", "What was found.")))
        # Report
        <BLANKLINE>
        What was found.
        <BLANKLINE>
    """
    blocks = [f"# {document.title}", document.lead]
    for section in document.sections:
        blocks += [f"## {section.title}", *map(_block, section.parts)]
    return "\n\n".join(block for block in blocks if block) + "\n"


def _block(part: Part) -> str:
    match part:
        case Paragraph(text, kind):
            return f"> {text}" if kind == "takeaway" else text
        case Heading(text):
            return f"### {text}"
        case Facts(pairs):
            return "\n".join(f"- {name}: {value}" for name, value in pairs.items())
        case Code(text):
            return "\n".join(f"    {line}" for line in text.splitlines())
        case Links(entries):
            return "\n".join(f"- [{text}]({to}) {more}".rstrip() for text, to, more in entries)
        case Table():
            return markdown_table(part)
    return ""


def markdown_table(table: Table) -> str:
    r"""The table in Markdown, its title above it in bold and its note below.

    Example:
        >>> print(markdown_table(Table("Scores", ("network", "%"), (("a|b", "95"),), numeric=1)))
        **Scores**
        <BLANKLINE>
        | network | % |
        | --- | ---: |
        | a\|b | 95 |
    """
    lines = [table.columns, ["---:" if table.is_number(column) else "---" for column in range(len(table.columns))]]
    for r, row in enumerate(table.rows):
        lines.append([f"**{cell}**" if (r, c) in table.strong else cell for c, cell in enumerate(row)])
    parts = [f"**{table.title}**" if table.title else "", "\n".join(map(_line, lines)), table.note]
    return "\n\n".join(part for part in parts if part)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
