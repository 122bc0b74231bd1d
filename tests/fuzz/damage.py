"""Inputs as damage, chance and malice leave them, and a watch over what reading them does."""

import copy
import json
import random
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from neurograft.errors import NeurograftError

MOST_MEMORY = 100_000  # kB that reading one small input may take
LONGEST = 30  # seconds after which a reader counts as one that never ends
WORDS = (b"\xff" * 8, b"\x00" * 8, b"\x7f" + b"\xff" * 7, b"[" * 50, b'{"a":' * 50, b'"\\ud800"', b"1e999", b"9" * 30)


def damaged_bytes(whole: bytes, chance: random.Random) -> bytes:
    """One of the ways in which files get damaged."""
    kind, at = chance.randrange(9), chance.randrange(len(whole))
    end = min(len(whole), at + chance.randrange(1, 40))
    if kind == 0:
        return whole[:at]
    if kind == 1:  # one bit
        return whole[:at] + bytes([whole[at] ^ 1 << chance.randrange(8)]) + whole[at + 1 :]
    if kind == 2:
        return whole[:at] + bytes([chance.randrange(256)]) + whole[at + 1 :]
    if kind == 3:
        return whole[:at] + chance.randbytes(end - at) + whole[end:]
    if kind == 4:
        return whole[:at] + chance.randbytes(end - at) + whole[at:]
    if kind == 5:
        return whole[:at] + whole[end:]
    if kind == 6:  # a part twice
        return whole[:end] + whole[at:]
    if kind == 7:  # two parts exchanged
        other = chance.randrange(len(whole))
        first, second = sorted((at, other))
        return (
            whole[:first]
            + whole[second : second + 8]
            + whole[first + 8 : second]
            + whole[first : first + 8]
            + whole[second + 8 :]
        )
    word = chance.choice(WORDS)
    return whole[:at] + word + whole[at + len(word) :]


def nested(depth: int) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = [value]
    return value


def odd_value(chance: random.Random) -> Any:
    """What a field may hold that nobody meant."""
    return chance.choice(
        [
            *(None, True, False, 0, 1, -1, 2**31, 2**63 - 1, 2**63, 2**64, 10**30, -(10**30), 0.5, -0.0, 1e308),
            *(
                float("nan"),
                float("inf"),
                "",
                "x",
                "F32",
                "\x1b[2J",
                "\n",
                "../x",
                "/etc/passwd",
                "a" * 10_000,
                "\ud800",
            ),
            *(
                [],
                {},
                [None],
                [[]],
                {"": {}},
                {"a": 1},
                [1] * 1000,
                nested(60),
                {"dtype": "F32"},
                "ä",
                "0",
                "-1",
                "1e9",
            ),
        ]
    )


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container in a tree of JSON with each of its keys."""
    if isinstance(value, (dict, list)):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from places(value[key])


def damaged_tree(whole: Any, chance: random.Random) -> Any:
    """A copy of a JSON tree in which one to three fields are changed, exchanged, removed, renamed or doubled."""
    tree = copy.deepcopy(whole)
    for _ in range(chance.randrange(1, 4)):
        found = list(places(tree))
        if not found:
            return odd_value(chance)
        (holder, key), (other, there) = chance.choice(found), chance.choice(found)
        kind = chance.randrange(6)
        if kind <= 2:
            holder[key] = odd_value(chance)
        elif kind == 3:
            holder[key], other[there] = copy.deepcopy(other[there]), copy.deepcopy(holder[key])
        elif kind == 4:
            del holder[key]
        elif isinstance(holder, dict):
            holder[str(odd_value(chance))[:200]] = holder.pop(key)
        else:
            holder.insert(key, odd_value(chance))
    return tree


def json_text(tree: Any) -> bytes:
    """JSON, with escapes for what is no text."""
    return json.dumps(tree).encode()


class TooLong(BaseException):
    """A reader that does not end; no reader catches it."""


@dataclass
class Outcome:
    """How many inputs were read, and what was said of the others."""

    read: int = 0
    refused: list[str] = field(default_factory=list)


def watched(inputs: Iterable[Any], read: Callable[[Any], None]) -> Outcome:
    """Read every input: only errors of the project may come, in bounded time and memory, each saying something."""
    outcome = Outcome()
    with _no_endless_reading():
        for number, given in enumerate(inputs):
            before = _memory(reset=True)
            signal.alarm(LONGEST)
            try:
                read(given)
                outcome.read += 1
            except NeurograftError as error:
                outcome.refused.append(str(error))
            except BaseException as error:
                pytest.fail(f"input {number}: {type(error).__name__}: {str(error)[:300]}\n{str(given)[:2000]}")
            taken = _memory() - before
            assert taken < MOST_MEMORY, f"input {number} took {taken} kB: {str(given)[:2000]}"
    for message in outcome.refused:
        assert message.strip()
        assert len(message) < 3000
        assert "\n" not in message.strip()
    return outcome


@contextmanager
def _no_endless_reading() -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise TooLong(f"no end after {LONGEST} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _memory(*, reset: bool = False) -> int:
    """The most memory that the process had since the last reset, in kB; 0 where the system does not say."""
    if not sys.platform.startswith("linux"):
        return 0
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM")))
