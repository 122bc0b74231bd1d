"""Names and messages are data: one function per format makes text of it that can do nothing there.

Pages escape with `html.escape`; JSON escapes by itself.
"""

import re
from unicodedata import category

JOINERS = "\u200c\u200d"  # invisible, but letters and emoji are written with them
SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~!&$])")  # what begins markup, a table's cell, an entity or a formula


def terminal(text: str, *, lines: bool = False) -> str:
    r"""Text for a terminal: what moves the cursor, colours, turns or hides text, and what cannot be encoded, is spelt.

    Args:
        text: a name, a message.
        lines: whether line breaks and tabs stay, as they do in a message of several lines.

    Example:
        >>> terminal("\x1b[2Ja\nb"), terminal("a\nb", lines=True)
        ('\\x1b[2Ja\\nb', 'a\nb')
    """
    return "".join(character if _shows(character, lines) else _spelt(character) for character in text)


def named(name: str, most: int = 120) -> str:
    r"""A name from a file for a message: on one line, and not longer than a line.

    Example:
        >>> named("layer\n1"), named("abcdef", most=4)
        ('layer\\n1', 'abc…')
    """
    shown = terminal(name[:most])
    return shown if len(name) <= most and len(shown) <= most else f"{shown[: most - 1]}…"


def markdown(text: str) -> str:
    r"""Text for a paragraph or a table's cell in Markdown: it is shown as it is, on one line.

    Example:
        >>> print(markdown("a|b <img> $$"))
        a\|b \<img\> \$\$
    """
    return SPECIAL.sub(r"\\\1", terminal(text))


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


def _shows(character: str, lines: bool) -> bool:
    if character in "\n\t":
        return lines
    return character in JOINERS or category(character) not in ("Cc", "Cf", "Cs", "Zl", "Zp")


def _spelt(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
