"""A document as Markdown, as a repository shows it; its pictures are files beside it."""

from collections.abc import Sequence

from neurograft.reporting.document import Code, Document, Facts, Heading, Links, Paragraph, Part, Picture
from neurograft.reporting.palette import palette_css
from neurograft.reporting.tables import Table, is_numeric


def markdown_page(document: Document) -> str:
    """The document's text; each picture is a link to `NAME.svg`.

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
        blocks += [_part(part) for part in section.parts]
    return "\n\n".join(blocks) + "\n"


def picture_files(document: Document) -> dict[str, str]:
    """File name -> the SVG file with its own colours, one per picture."""
    return {f"{picture.name}.svg": standalone(picture) for picture in document.pictures()}


def standalone(picture: Picture) -> str:
    """A picture that brings the palette and the chart's style with it, on the reader's own ground.

    Example:
        >>> standalone(Picture('<svg viewBox="0 0 1 1"></svg>', "nothing")).partition(">")[0]
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="0 0 1 1"'
    """
    spaces = '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    head, end, rest = picture.svg.partition(">")
    style = f"<style>{palette_css()} svg {{ background: var(--ground); font-family: system-ui, sans-serif; }}</style>"
    return head.replace("<svg", spaces, 1) + end + style + rest + "\n"


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


def _part(part: Part) -> str:
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
        case Picture():
            return f"![{part.label}]({part.name}.svg)"
        case Table():
            return markdown_table(part)
