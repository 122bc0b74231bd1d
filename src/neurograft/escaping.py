"""Names and messages are data: one function per format makes text of it that can do nothing there.

JSON escapes by itself.
"""

import os
import re
from html import escape
from unicodedata import category
from urllib.parse import quote

JOINERS = "\u200c\u200d"  # invisible, but letters and emoji are written with them
SPECIAL = re.compile(r"([\\`*{}\[\]<>#|~!&$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9]))")
"""What begins markup, a table's cell, an entity or a formula; an underscore inside a word does not."""
START = re.compile(r"^(\d*)([-+=.)])")  # what at the beginning of a line makes a list, a heading or a rule
HIDDEN = ("Cc", "Cf", "Cn", "Cs", "Zl", "Zp")  # categories of characters that are obeyed, unseen or none


def terminal(text: str, *, lines: bool = False) -> str:
    r"""Text for a terminal: what moves the cursor, colours, turns or hides text, and what cannot be encoded, is spelt.

    Args:
        text: a name, a message.
        lines: whether line breaks and tabs stay, as they do in a message of several lines.

    Example:
        >>> terminal("\x1b[2Ja\nb"), terminal("a\nb", lines=True)
        ('\\x1b[2Ja\\nb', 'a\nb')
    """
    if text.isprintable():
        return text
    return "".join(character if _shows(character, lines) else _spelt(character) for character in text)


def named(name: str, most: int = 120) -> str:
    r"""A name from a file for a message: on one line, and not longer than a line.

    Example:
        >>> named("layer\n1"), named("abcdef", most=4)
        ('layer\\n1', 'abc…')
    """
    shown = terminal(name[:most])
    return shown if len(name) <= most and len(shown) <= most else f"{shown[: most - 1]}…"


def markdown(text: str, *, start: bool = False) -> str:
    r"""Text for a paragraph or a table's cell in Markdown: it is shown as it is, on one line.

    Args:
        text: a name, a sentence.
        start: whether it begins a line, where a number or a hyphen would make a list of it.

    Example:
        >>> print(markdown("a|b <img> $$"), markdown("1. a", start=True))
        a\|b \<img\> \$\$ 1\. a
    """
    shown = SPECIAL.sub(r"\\\1", terminal(text))
    return START.sub(r"\1\\\2", shown.strip()) if start else shown


def markdown_code(text: str) -> str:
    """Text as code in a line of Markdown.

    Example:
        >>> print(markdown_code("net"), markdown_code("a`b"))
        `net` ``a`b``
    """
    shown = terminal(text)
    fence = "`" * (1 + max(map(len, re.findall("`+", shown)), default=0))
    pad = " " if shown.startswith("`") or shown.endswith("`") else ""
    return f"{fence}{pad}{shown}{pad}{fence}"


def html(text: str) -> str:
    """Text for a page, between tags or in an attribute.

    Example:
        >>> html("<img src=x> & co")
        '&lt;img src=x&gt; &amp; co'
    """
    return escape(terminal(text, lines=True))


def address(name: str) -> str:
    """The address of a file that lies beside a page: a file, whatever scheme or folder its name looks like.

    Example:
        >>> address("javascript:alert(1).html")
        'javascript%3Aalert%281%29.html'
    """
    return quote(os.fsencode(name), safe="")


def figure_text(text: str) -> str:
    r"""Text for a drawing by matplotlib: no formula, on one line, and not longer than a legend takes.

    Example:
        >>> print(figure_text("$x$"), figure_text("_a"))
        \$x\$  _a
    """
    shown = named(text, 80).replace("$", r"\$")
    return f" {shown}" if shown.startswith("_") else shown  # matplotlib leaves such names out of legends


def code_block(text: str, language: str) -> list[str]:
    """Text as a block of code in Markdown, line by line; no line of it ends the block.

    Example:
        >>> code_block("a: 1", "yaml")
        ['```yaml', 'a: 1', '```']
    """
    shown = terminal(text, lines=True)
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", shown)), default=0))
    return [f"{fence}{language}", *shown.rstrip("\n").split("\n"), fence]


def _shows(character: str, lines: bool) -> bool:
    if character in "\n\t":
        return lines
    return character in JOINERS or category(character) not in HIDDEN


def _spelt(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
