"""Pickles read without unpickling them: no class is looked up, nothing is called, objects stay descriptions."""

import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from struct import error as StructError
from typing import IO, Any


@dataclass(frozen=True, slots=True)
class GlobalName:
    """A class or function that a pickle names: `module name`."""

    name: str


@dataclass(frozen=True, slots=True)
class Referred:
    """What lies outside of the pickle, by the identification that the pickle gives for it."""

    key: Any


@dataclass(eq=False, slots=True)
class Constructed:
    """An object that unpickling would make: `kind` called with `arguments`, given items and a state."""

    kind: Any
    arguments: Any
    items: Any = field(default_factory=dict)
    state: Any = None


class _Mark:
    """Where a collection's items begin on the stack."""


MARK = _Mark()
DICTS = ("collections OrderedDict", "collections defaultdict", "collections Counter", "builtins dict")


def read_pickle(file: IO[bytes], referred: list[Referred] | None = None) -> Any:
    """What one pickle holds: numbers, texts, lists, tuples, dicts, `GlobalName`, `Referred` and `Constructed`.

    Time and memory grow with the length of the pickle only: what would be called is kept as a description, and keys of
    dicts that are neither text, numbers nor None are left out with their values. What lies outside is added to
    `referred` in the order it is met.

    Raises:
        ValueError: it is no whole pickle.

    Example:
        >>> import io, pickle
        >>> read_pickle(io.BytesIO(pickle.dumps({"a": [1, (2.5, "b")]})))
        {'a': [1, (2.5, 'b')]}
    """
    machine = _Machine([] if referred is None else referred)
    try:
        for operation, argument, _ in pickletools.genops(file):
            if operation.name == "STOP":
                return machine.stack.pop()
            machine.run(operation.name, argument)
    except (IndexError, KeyError, TypeError, AttributeError, OverflowError, StructError) as error:
        raise ValueError(f"no pickle: {type(error).__name__}: {error}") from error
    raise ValueError("no pickle: it does not stop")


class _Machine:
    """The stack and the memo; every method is the operation of its name in `pickletools`."""

    def __init__(self, referred: list[Referred]) -> None:
        self.referred = referred
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self, name: str, argument: Any) -> None:
        """Perform one operation.

        Raises:
            ValueError: it is not known here.
        """
        if name in CONSTANTS:
            self.stack.append(CONSTANTS[name])
        elif name in VALUES:
            self.stack.append(argument)
        elif name in ("PROTO", "FRAME"):
            pass
        elif name in PUTS:
            self.memo[len(self.memo) if name == "MEMOIZE" else int(argument)] = self.stack[-1]
        elif name in GETS:
            self.stack.append(self.memo[int(argument)])
        elif name in OPERATIONS:
            OPERATIONS[name](self, argument)
        else:
            raise ValueError(f"no pickle that can be read: operation {name}")

    def pop(self, count: int) -> list[Any]:
        """The last `count` objects."""
        if count > len(self.stack):
            raise IndexError("the stack is empty")
        found = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        if any(item is MARK for item in found):
            raise IndexError("a mark where an object must be")
        return found

    def pop_mark(self) -> list[Any]:
        """The objects above the last mark."""
        at = len(self.stack) - 1
        while self.stack[at] is not MARK:
            at -= 1
            if at < 0:
                raise IndexError("no mark")
        found = self.stack[at + 1 :]
        del self.stack[at:]
        return found

    def collect(self, items: list[Any]) -> None:
        """Put items into the collection on top of the stack."""
        target = self.stack[-1]
        if isinstance(target, list):
            target.extend(items)
        elif isinstance(target, Constructed):
            target.items.update(zip(range(len(target.items), len(target.items) + len(items)), items, strict=True))
        else:
            raise TypeError(f"items for a {type(target).__name__}")

    def update(self, items: list[Any]) -> None:
        """Put keys and values into the dict on top of the stack."""
        target = self.stack[-1].items if isinstance(self.stack[-1], Constructed) else self.stack[-1]
        if not isinstance(target, dict) or len(items) % 2:
            raise TypeError(f"keys and values for a {type(target).__name__}")
        pairs = zip(items[::2], items[1::2], strict=True)
        target.update((key, value) for key, value in pairs if isinstance(key, KEYS))

    def make(self, kind: Any, arguments: Any, keywords: Any = None) -> None:
        """Push what calling `kind` would give."""
        if isinstance(kind, GlobalName) and kind.name in DICTS:
            self.stack.append({})
            pairs = arguments[0] if isinstance(arguments, tuple) and arguments else ()
            for pair in pairs if isinstance(pairs, list) else ():
                self.update(list(pair))
        else:
            self.stack.append(Constructed(kind, arguments, keywords if isinstance(keywords, dict) else {}))

    def make_first(self, items: list[Any]) -> None:
        """Push what calling the first of `items` with the others would give."""
        self.make(items[0], tuple(items[1:]))

    def new_dict(self, items: list[Any]) -> None:
        """Push a dict of keys and values."""
        self.stack.append({})
        self.update(items)

    def refer(self, key: Any) -> None:
        """Push what lies outside."""
        self.referred.append(Referred(key))
        self.stack.append(self.referred[-1])

    def build(self, state: Any) -> None:
        """Give the object on top of the stack its state; attributes of dicts are not kept."""
        if isinstance(self.stack[-1], Constructed):
            self.stack[-1].state = state


KEYS = (str, int, float, type(None))  # hashed in no time, whatever a pickle nests
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "MARK": MARK, "EMPTY_TUPLE": ()}
VALUES = frozenset(
    [
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
        *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
        *("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
    ]
)
PUTS, GETS = ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), ("GET", "BINGET", "LONG_BINGET")
OPERATIONS: dict[str, Callable[[_Machine, Any], Any]] = {
    "POP": lambda m, _: m.stack.pop(),
    "POP_MARK": lambda m, _: m.pop_mark(),
    "DUP": lambda m, _: m.stack.append(m.stack[-1]),
    "EMPTY_LIST": lambda m, _: m.stack.append([]),
    "EMPTY_SET": lambda m, _: m.stack.append([]),
    "EMPTY_DICT": lambda m, _: m.stack.append({}),
    "DICT": lambda m, _: m.new_dict(m.pop_mark()),
    "INST": lambda m, name: m.make(GlobalName(name), tuple(m.pop_mark())),
    "OBJ": lambda m, _: m.make_first(m.pop_mark()),
    "LIST": lambda m, _: m.stack.append(m.pop_mark()),
    "FROZENSET": lambda m, _: m.stack.append(m.pop_mark()),
    "TUPLE": lambda m, _: m.stack.append(tuple(m.pop_mark())),
    "TUPLE1": lambda m, _: m.stack.append(tuple(m.pop(1))),
    "TUPLE2": lambda m, _: m.stack.append(tuple(m.pop(2))),
    "TUPLE3": lambda m, _: m.stack.append(tuple(m.pop(3))),
    "APPEND": lambda m, _: m.collect(m.pop(1)),
    "APPENDS": lambda m, _: m.collect(m.pop_mark()),
    "ADDITEMS": lambda m, _: m.collect(m.pop_mark()),
    "SETITEM": lambda m, _: m.update(m.pop(2)),
    "SETITEMS": lambda m, _: m.update(m.pop_mark()),
    "BUILD": lambda m, _: m.build(*m.pop(1)),
    "GLOBAL": lambda m, name: m.stack.append(GlobalName(name)),
    "STACK_GLOBAL": lambda m, _: m.stack.append(GlobalName(" ".join(m.pop(2)))),
    "REDUCE": lambda m, _: m.make(*m.pop(2)),
    "NEWOBJ": lambda m, _: m.make(*m.pop(2)),
    "NEWOBJ_EX": lambda m, _: m.make(*m.pop(3)),
    "PERSID": lambda m, key: m.refer(key),
    "BINPERSID": lambda m, _: m.refer(*m.pop(1)),
}
