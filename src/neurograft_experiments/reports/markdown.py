"""A document as Markdown, as a repository shows it: words and tables, without its pictures."""

from neurograft.escaping import markdown, terminal
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
    blocks = [f"# {markdown(document.title)}", markdown(document.lead, start=True)]
    for section in document.sections:
        blocks += [f"## {markdown(section.title)}", *map(_block, section.parts)]
    return "\n\n".join(block for block in blocks if block) + "\n"


def _block(part: Part) -> str:
    match part:
        case Paragraph(text, kind):
            return f"{'> ' if kind == 'takeaway' else ''}{markdown(text, start=True)}"
        case Heading(text):
            return f"### {markdown(text)}"
        case Facts(pairs):
            return "\n".join(f"- {markdown(name)}: {markdown(value)}" for name, value in pairs.items())
        case Code(text):
            return "\n".join(f"    {terminal(line)}" for line in text.splitlines())
        case Links(entries):
            return "\n".join(f"- [{markdown(text)}]({to}) {markdown(more)}".rstrip() for text, to, more in entries)
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
    lines = [
        [markdown(column) for column in table.columns],
        ["---:" if table.is_number(column) else "---" for column in range(len(table.columns))],
    ]
    for r, row in enumerate(table.rows):
        cells = map(markdown, row)
        lines.append([f"**{cell}**" if (r, c) in table.strong else cell for c, cell in enumerate(cells)])
    title, note = markdown(table.title).strip(), markdown(table.note, start=True)
    parts = [f"**{title}**" if title else "", "\n".join(f"| {' | '.join(cells)} |" for cells in lines), note]
    return "\n\n".join(part for part in parts if part)
