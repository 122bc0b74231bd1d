"""The contents of a report, and the page for the browser that it becomes."""

from base64 import b64encode
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from neurograft.escaping import html
from neurograft.reporting.tables import Table


@dataclass(frozen=True, slots=True)
class Paragraph:
    """A paragraph of text; `kind` is its emphasis: "takeaway" stands out, "soft" and "note" stand back."""

    text: str
    kind: Literal["", "soft", "note", "takeaway"] = ""


@dataclass(frozen=True, slots=True)
class Heading:
    """A heading inside a section."""

    text: str


@dataclass(frozen=True, slots=True)
class Facts:
    """Names and values in two columns."""

    pairs: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Code:
    """A command or a file as it stands."""

    text: str


@dataclass(frozen=True, slots=True)
class Links:
    """A list of links: what a reader sees, where it leads, and what to expect there."""

    entries: tuple[tuple[str, str, str], ...]


@dataclass(frozen=True, slots=True)
class Picture:
    """A drawing, an SVG file; `label` is its caption, and for people who cannot see it."""

    svg: bytes
    label: str

    @property
    def link(self) -> str:
        """The picture as the address of an image."""
        return f"data:image/svg+xml;base64,{b64encode(self.svg).decode()}"


Part: TypeAlias = Paragraph | Heading | Facts | Code | Links | Picture | Table


@dataclass(frozen=True, slots=True)
class Section:
    """A heading and what stands under it."""

    title: str
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Document:
    """A title, one sentence on what the reader will find, and sections."""

    title: str
    lead: str
    sections: tuple[Section, ...] = field(default=())

    def pictures(self) -> Iterator[Picture]:
        """All pictures, in order."""
        for section in self.sections:
            yield from (part for part in section.parts if isinstance(part, Picture))


def html_page(document: Document) -> str:
    """The document as a self-contained page: one file, no script, no network.

    Example:
        >>> html_page(Document("Report", "What was found.")).splitlines()[0]
        '<!doctype html>'
    """
    from jinja2 import Environment, PackageLoader
    from markupsafe import Markup

    def shown(value: object) -> Markup:
        return value if isinstance(value, Markup) else Markup(html(str(value)))

    loader = PackageLoader(__package__, ".")
    pages = Environment(loader=loader, autoescape=True, finalize=shown, trim_blocks=True, lstrip_blocks=True)
    return pages.get_template("page.html").render(document=document)
