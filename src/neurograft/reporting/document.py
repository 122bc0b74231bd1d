"""What a report says, whatever it is shown as: a page for the browser, or Markdown."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from neurograft.reporting.tables import Table

Kind: TypeAlias = Literal["", "soft", "note", "takeaway"]


@dataclass(frozen=True, slots=True)
class Paragraph:
    """A paragraph of text; `kind` says how loudly: "takeaway" stands out, "soft" and "note" stand back."""

    text: str
    kind: Kind = ""


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
    """A drawing.

    Attributes:
        svg: an `<svg>` element whose colours are the palette's CSS variables.
        label: what it shows: its caption, and for people who cannot see it.
        name: of the picture, its own on the page.
    """

    svg: str
    label: str
    name: str = "picture"


Part: TypeAlias = Paragraph | Heading | Facts | Code | Links | Picture | Table


@dataclass(frozen=True, slots=True)
class Section:
    """A heading and what stands under it."""

    title: str
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Document:
    """A title, one sentence on what the reader will find, and sections.

    Example:
        >>> Document("Report", "What was found.", (Section("Figures", (Paragraph("None."),)),)).sections[0].title
        'Figures'
    """

    title: str
    lead: str
    sections: tuple[Section, ...] = field(default=())

    def pictures(self) -> Iterator[Picture]:
        """All pictures, in order."""
        for section in self.sections:
            yield from (part for part in section.parts if isinstance(part, Picture))
