"""A YAML file as plain values with the line of each: small, shallow, whatever its aliases stand for."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

import yaml

from neurograft.errors import NeurograftError
from neurograft.escaping import named, terminal

Keys: TypeAlias = tuple[str | int, ...]

MOST_BYTES = 100_000
MOST_VALUES = 10_000
"""Values of a file, those that aliases repeat included."""
MOST_NESTED = 30
MOST_LETTERS = 1000
"""Of a message about a line."""
MERGE = "tag:yaml.org,2002:merge"
PLAIN = {f"tag:yaml.org,2002:{kind}" for kind in ("null", "bool", "int", "float", "str")}


def read_bounded(path: Path, what: str, error: type[NeurograftError]) -> str:
    """The text of a small file.

    Args:
        path: where it lies.
        what: what it is, for messages: "a recipe".
        error: what to raise.

    Raises:
        NeurograftError: of the kind that was given: it cannot be read, is no text, or too large.
    """
    shown = terminal(str(path))
    try:
        if path.exists() and not path.is_file():  # a pipe or a device may never end
            raise OSError("it is no file")
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise OSError(f"{what} has at most {MOST_BYTES:,} bytes")
        return content.decode("utf-8")
    except UnicodeDecodeError as problem:
        raise _error(error, shown, content.count(b"\n", 0, problem.start) + 1, "no UTF-8") from problem
    except (OSError, ValueError) as problem:  # the system takes no name with a null character
        raise error(f"{shown} cannot be read: {getattr(problem, 'strerror', None) or problem}") from problem


@dataclass(frozen=True, eq=False)
class YamlFile:
    """A mapping that was read from YAML, and the line of every key and item.

    Attributes:
        file: its name, for messages.
        raw: the mapping.
        lines: the keys that lead to a value -> its line.
        text: what was read.
        error: what is raised where a value cannot be meant.
    """

    file: str
    raw: dict[str, Any]
    lines: dict[Keys, int]
    text: str
    error: type[NeurograftError]

    @classmethod
    def read(cls, path: Path, what: str, error: type[NeurograftError]) -> "YamlFile":
        """Read a file: `read_bounded`, then `parse`.

        Raises:
            NeurograftError: of the kind that was given.
        """
        return cls.parse(read_bounded(path, what, error), str(path), what, error)

    @classmethod
    def parse(cls, text: str, file: str, what: str, error: type[NeurograftError]) -> "YamlFile":
        """Read a text.

        Raises:
            NeurograftError: of the kind that was given, with the line of what is no YAML, or no plain value.
        """
        lines: dict[Keys, int] = {}
        try:
            loader = _Loader(text)
            node = loader.get_single_node()
            raw = _PlainValues(loader, lines).value(node, ()) if node is not None else None
        except yaml.MarkedYAMLError as problem:
            line = problem.problem_mark.line + 1 if problem.problem_mark else 1
            raise _error(error, file, line, str(problem.problem or "no YAML")) from problem
        except (yaml.YAMLError, ValueError, OverflowError) as problem:  # a character or an escape that there is not
            line = text.count("\n", 0, getattr(problem, "position", 0)) + 1
            raise _error(error, file, line, f"no YAML: {str(problem).splitlines()[0]}") from problem
        if not isinstance(raw, dict):
            raise _error(error, file, 1, f"{what} is a mapping of keys to values")
        return cls(file, raw, lines, text, error)

    def line(self, keys: Keys) -> int:
        """The line of a key, or of the nearest key around it."""
        return next((self.lines[keys[:n]] for n in range(len(keys), 0, -1) if keys[:n] in self.lines), 1)

    def fail(self, keys: Keys, problem: str) -> NoReturn:
        """Refuse the value at the end of some keys.

        Raises:
            NeurograftError: of the file's kind, with the file, the line and the problem.
        """
        self.fail_at(self.line(keys), problem)

    def fail_at(self, line: int, problem: str) -> NoReturn:
        """Refuse what stands in a line.

        Raises:
            NeurograftError: of the file's kind, with the file, the line and the problem.
        """
        raise _error(self.error, self.file, line, problem)


def _error(kind: type[NeurograftError], file: str, line: int, problem: str) -> NeurograftError:
    return kind(f"{terminal(file)}, line {line}: {named(problem, MOST_LETTERS)}")


class _Loader(yaml.SafeLoader):
    """Refuses what is nested too deep before Python's stack is full."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self.depth += 1
        if self.depth > MOST_NESTED:
            raise _marked(f"nested more than {MOST_NESTED} levels deep", self.peek_event())  # type: ignore[no-untyped-call]
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


@dataclass
class _PlainValues:
    """YAML nodes as plain values; notes the line of each key and counts what aliases repeat."""

    loader: _Loader
    lines: dict[Keys, int]
    values: int = 0

    def value(self, node: Any, keys: Keys, depth: int = 0) -> Any:
        self.values += 1
        if self.values > MOST_VALUES:
            raise _marked(f"more than {MOST_VALUES:,} values, with those that aliases repeat", node)
        if depth > MOST_NESTED:
            raise _marked(f"nested more than {MOST_NESTED} levels deep, by an alias", node)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, keys, depth + 1)
        if isinstance(node, yaml.SequenceNode):
            items = []
            for number, item in enumerate(node.value):
                self.lines[(*keys, number)] = item.start_mark.line + 1
                items.append(self.value(item, (*keys, number), depth + 1))
            return items
        return self._scalar(node)

    def _mapping(self, node: Any, keys: Keys, depth: int) -> dict[Any, Any]:
        """What `<<` brings in gives way to the mapping's own keys; of several such mappings the first counts."""
        found: dict[Any, Any] = {}
        for merged in _merged(node):
            found = self.value(merged, keys, depth) | found
        given: set[Any] = set()
        for key_node, value_node in node.value:
            if key_node.tag == MERGE:
                continue
            if not isinstance(key_node, yaml.ScalarNode):
                raise _marked("a key is a word or a number", key_node)
            key = self._scalar(key_node)
            if key in given:
                raise _marked(f"{key!r} is there twice", key_node)
            given.add(key)
            self.lines[(*keys, key)] = key_node.start_mark.line + 1
            found[key] = self.value(value_node, (*keys, key), depth)
        return found

    def _scalar(self, node: Any) -> Any:
        if node.tag not in PLAIN:
            raise _marked("dates, binary data and other tags are not taken; put text in quotes", node)
        try:
            value = self.loader.construct_object(node)
        except (ValueError, LookupError, OverflowError) as error:
            raise _marked(f"no {node.tag.rpartition(':')[2]}: {named(node.value)!r}", node) from error
        if isinstance(value, float) and not math.isfinite(value):
            raise _marked(f"{named(node.value)} is no finite number", node)
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise _marked(f"{named(node.value)} has more than 64 bits", node)
        if isinstance(value, str) and any("\ud800" <= letter <= "\udfff" for letter in value):
            raise _marked(f"{named(value)} holds half a surrogate pair, which is no character", node)
        return value


def _merged(node: Any) -> Iterator[Any]:
    """The mappings that `<<` brings into a mapping."""
    for key_node, value_node in node.value:
        if key_node.tag == MERGE:
            for one in value_node.value if isinstance(value_node, yaml.SequenceNode) else [value_node]:
                if not isinstance(one, yaml.MappingNode):
                    raise _marked("<< is given a mapping, or a list of them", one)
                yield one


def _marked(problem: str, at: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=at.start_mark)
