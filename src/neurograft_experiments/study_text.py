"""A study file as plain values with the line of each, checked by models."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from pydantic import BaseModel, ValidationError

from neurograft import yaml_file
from neurograft.errors import StudyError
from neurograft.escaping import named
from neurograft.yaml_file import Keys, YamlFile

Checked = TypeVar("Checked", bound=BaseModel)


def read_bounded(path: Path) -> str:
    """The text of a study file.

    Raises:
        StudyError: it cannot be read, is no text, or larger than a study is.
    """
    return yaml_file.read_bounded(path, "a study", StudyError)


@dataclass(frozen=True, eq=False)
class StudyText:
    """A study's YAML; presets and cases overlay what they change, so that a key may stand in several places."""

    yaml: YamlFile

    @classmethod
    def read(cls, text: str, file: str) -> "StudyText":
        """Read the text of a study.

        Raises:
            StudyError: with the line of what is no YAML, or no plain value.
        """
        return cls(YamlFile.parse(text, file, "a study", StudyError))

    @property
    def file(self) -> str:
        """Its name, for messages."""
        return self.yaml.file

    @property
    def raw(self) -> dict[str, Any]:
        """The mapping that the file is."""
        return self.yaml.raw

    def line(self, keys: Keys, prefixes: tuple[Keys, ...]) -> int:
        """The line of a key, or of the nearest key around it, in the last of the overlaid mappings that has it."""
        lines = self.yaml.lines
        for length in range(len(keys), -1, -1):
            for prefix in prefixes:
                if length and (*prefix, *keys[:length]) in lines:
                    return lines[(*prefix, *keys[:length])]
        return lines.get(prefixes[0], 1)

    def fail(self, keys: Keys, problem: str, prefixes: tuple[Keys, ...] = ((),)) -> NoReturn:
        """Refuse the value at the end of some keys.

        Raises:
            StudyError: with the file, the line and the problem.
        """
        self.yaml.fail_at(self.line(keys, prefixes), problem)

    def checked(
        self, model: type[Checked], raw: Any, prefixes: tuple[Keys, ...], varied: Mapping[str, Any] | None = None
    ) -> Checked:
        """The validated model.

        Raises:
            StudyError: with the line: that of `vary` where a varied value is to blame.
        """
        try:
            return model.model_validate(raw)
        except ValidationError as error:
            first = error.errors()[0]
            keys: Keys = first["loc"]
            problem = first["msg"]
            if first["type"] == "unknown_key":
                keys = (*keys, first["ctx"]["key"])
            elif keys:
                given = first["input"]
                shown = "" if isinstance(given, (dict, list, BaseModel)) else f", got {named(repr(given))}"
                problem = f"{'.'.join(map(str, keys))}: {problem}{shown}"
            for path, value in (varied or {}).items():
                way = tuple(path.split("."))
                if way[: len(keys)] == keys[: len(way)]:
                    at = f"at {path} = {named(repr(value))} of vary"
                    self.fail(("vary", path), f"{problem} ({at})", prefixes)
            self.fail((*keys, first["type"]), problem, prefixes)  # a model's own errors are named for the key to blame
