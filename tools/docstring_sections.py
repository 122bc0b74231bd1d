"""How the API pages read our docstrings, for Griffe (`extensions` in mkdocs.yml)."""

import re
from typing import Any

import griffe


class OurDocstrings(griffe.Extension):
    """Takes `Example:` for `Examples:`, and tells of every attribute at its own place what its class tells of it."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called for every module, class, function and attribute."""
        if obj.docstring:
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)

    def on_class(self, *, cls: griffe.Class, **_: Any) -> None:
        """Called for every class, once its members are known."""
        for section in cls.docstring.parse("google") if cls.docstring else ():
            if section.kind is griffe.DocstringSectionKind.attributes:
                for told in section.value:
                    member = cls.members.get(told.name)
                    if isinstance(member, griffe.Object) and not member.docstring:
                        text = told.description[:1].upper() + told.description[1:]
                        member.docstring = griffe.Docstring(text, parent=member)
