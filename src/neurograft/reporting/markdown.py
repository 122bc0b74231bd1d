"""A document as Markdown, as a repository shows it: words and tables, without its pictures."""

from collections.abc import Sequence

from neurograft.reporting.document import Code, Document, Facts, Heading, Links, Paragraph, Picture
from neurograft.reporting.tables import Table, is_numeric


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
        blocks.append(f"## {section.title}")
        blocks += [_part(part) for part in section.parts if not isinstance(part, Picture)]
    return "\n\n".join(blocks) + "\n"


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
    ruler = ["---:" if is_numeric(table, column) else "---" for column in range(len(table.columns))]
    lines = [_line(table.columns), _line(ruler)]
    for r, row in enumerate(table.rows):
        lines.append(_line([f"**{cell}**" if (r, c) in table.strong else cell for c, cell in enumerate(row)]))
    parts = ([f"**{table.title}**"] if table.title else []) + ["\n".join(lines)]
    return "\n\n".join([*parts, table.note] if table.note else parts)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _part(part: Paragraph | Heading | Facts | Code | Links | Table) -> str:
    match part:
        case Paragraph(text, "takeaway"):
            return f"> {text}"
        case Paragraph(text):
            return text
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
