"""A recipe: which models are merged by which operator, as mergekit's YAML files say it."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from glob import escape
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neurograft.errors import MissingExtra, OptionError, RecipeError, closest
from neurograft.escaping import named
from neurograft.merging.merge_methods import LACKING, MERGE_METHODS, MergeMethod
from neurograft.methods import choice_of, method_of
from neurograft.methods.average import Average
from neurograft.methods.method import Method
from neurograft.operators.operator import Operator
from neurograft.operators.settings import Gradient, Range, check_setting
from neurograft.paths import is_there

if TYPE_CHECKING:
    from neurograft.yaml_file import Keys, YamlFile

TOP = (
    *(
        "merge_method",
        "models",
        "slices",
        "base_model",
        "parameters",
        "dtype",
        "out_dtype",
        "tokenizer_source",
        "align",
    ),
)
REFUSED = {
    "modules": "of models with several modules each is merged by a recipe of its own",
    "tokenizer": "tokens are not moved between vocabularies; tokenizer_source: base works where the vocabularies agree",
    "chat_template": "templates are not written; the base's is kept",
    "experts": "mixtures of experts are not built from dense models",
    "gate_mode": "mixtures of experts are not built from dense models",
    "genome": "recipes are not searched for (mergekit-evolve)",
    "tasks": "recipes are not searched for (mergekit-evolve)",
}
DTYPES = ("float32", "bfloat16", "float16", "float64")
LAYER_COUNTS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")


@dataclass(frozen=True, eq=False)
class Recipe:
    """What is merged, and how.

    Attributes:
        operator: how the members are combined.
        members: where they lie, in the order in which the operator takes them.
        base: where their ancestor lies; None without one.
        first: the model whose configuration and tokenizer are kept.
        align: the method that brings them into one basis; None leaves them as they are.
        dtype: of the result; None for the members'.
        same_vocabulary: whether all models must have one vocabulary (`tokenizer_source`).
        text: the file as it is.
    """

    operator: Operator
    members: tuple[Path, ...]
    base: Path | None
    first: Path
    align: Method | None
    dtype: str | None
    same_vocabulary: bool
    text: str

    @classmethod
    def read(cls, path: str | Path) -> "Recipe":
        """Read a recipe; models with relative paths are looked for in the current folder, then beside the recipe.

        Raises:
            RecipeError: with the line: no YAML, an unknown key (with the closest), a value that cannot be meant, a
                model that is not there, or something of mergekit that there is not here.
            MissingExtra: PyYAML is not installed.
        """
        try:
            from neurograft.yaml_file import YamlFile
        except ImportError as error:
            raise MissingExtra("recipes need PyYAML: pip install 'neurograft[recipes]'") from error
        return _Reader(YamlFile.read(Path(path), "a recipe", RecipeError), Path(path).parent).recipe()


@dataclass(frozen=True, eq=False)
class _Level:
    """Parameters that are given in one place, and the keys that lead there."""

    parameters: Mapping[str, Any]
    keys: "Keys"


@dataclass(frozen=True, eq=False)
class _Model:
    """One model of a recipe: where it lies, what it is given, and the keys that lead to it."""

    path: Path
    level: _Level
    keys: "Keys"


@dataclass(frozen=True, eq=False)
class _Reader:
    """Turns a file into a recipe, with the line of whatever cannot be meant."""

    yaml: "YamlFile"
    folder: Path

    def recipe(self) -> Recipe:
        raw, fail = self.yaml.raw, self.yaml.fail
        for key in raw:
            if key in REFUSED:
                fail((key,), f"{key}: {REFUSED[key]}")
            if key not in TOP:
                fail((key,), f"unknown key {key!r}; {closest(str(key), TOP)}")
        method = self._method()
        models, shared = self._models()
        base = None if raw.get("base_model") is None else self._path(raw["base_model"], ("base_model",))
        members, ancestor = self._roles(method, models, base)
        self._check_parameters(method, members, shared)
        options = {
            **{option: self._each(method, name, members, shared) for name, option in method.each.items()},
            **{option: self._shared(method, name, shared) for name, option in method.shared.items()},
            **method.switched(self._switches(method, shared)),
        }
        try:
            operator = method.operator(**{name: value for name, value in options.items() if value is not None})
        except OptionError as error:
            fail(("parameters",) if "parameters" in raw else ("merge_method",), str(error))
        dtypes = [self._dtype(key) for key in ("out_dtype", "dtype")]
        return Recipe(
            operator=operator,
            members=tuple(model.path for model in members),
            base=ancestor,
            first=base or members[0].path,
            align=self._align(operator),
            dtype=next((dtype for dtype in dtypes if dtype is not None), None),
            same_vocabulary=self._same_vocabulary([*models, *members]),
            text=self.yaml.text,
        )

    def _method(self) -> MergeMethod:
        name = self.yaml.raw.get("merge_method")
        if name is None:
            self.yaml.fail((), f"merge_method is missing; known: {', '.join(sorted(MERGE_METHODS))}")
        if name in LACKING:
            self.yaml.fail(("merge_method",), f"merge_method {name}: {LACKING[name]}")
        if not isinstance(name, str) or name not in MERGE_METHODS:
            self.yaml.fail(("merge_method",), f"unknown merge_method {name!r}; {closest(str(name), MERGE_METHODS)}")
        return MERGE_METHODS[name]

    def _models(self) -> tuple[list[_Model], list[_Level]]:
        """The models in their order, and the parameters that they share, those that count more later."""
        raw = self.yaml.raw
        if ("models" in raw) == ("slices" in raw):
            self.yaml.fail(("slices",) if "slices" in raw else (), "a recipe has either models: or slices:")
        shared = [_Level(self._mapping(raw.get("parameters"), ("parameters",)), ("parameters",))]
        if "models" in raw:
            items = self._list(raw["models"], ("models",))
            found = [self._model(item, ("models", i), ("model", "parameters")) for i, item in enumerate(items)]
        else:
            found, own = self._restated()
            shared.append(own)
        paths = [model.path for model in found]
        for i, model in enumerate(found):
            if model.path in paths[:i]:
                self.yaml.fail(model.keys, f"{model.path} is there twice")
        return found, shared

    def _restated(self) -> tuple[list[_Model], _Level]:
        """The models of one slice that takes all layers of each."""
        slices = self._list(self.yaml.raw["slices"], ("slices",))
        if len(slices) != 1:
            self.yaml.fail(("slices", 1), "layers are not stacked anew (a frankenmerge): there may be one slice alone")
        keys: Keys = ("slices", 0)
        own = self._known(slices[0], keys, ("sources", "parameters"))
        sources = self._list(own.get("sources"), (*keys, "sources"))
        found = []
        for i, source in enumerate(sources):
            at = (*keys, "sources", i)
            model = self._model(source, at, ("model", "parameters", "layer_range"))
            count, asked = _layers(model.path), source.get("layer_range")
            if asked is not None and asked != [0, count]:
                self.yaml.fail(
                    (*at, "layer_range"),
                    f"layer_range {asked} is not all of the {count} layers: layers are not stacked anew "
                    "(a frankenmerge)",
                )
            found.append(model)
        at = (*keys, "parameters")
        return found, _Level(self._mapping(own.get("parameters"), at), at)

    def _model(self, item: Any, keys: "Keys", known: tuple[str, ...]) -> _Model:
        item = self._known(item, keys, known)
        if "model" not in item:
            self.yaml.fail(keys, "model: is missing, a folder or a checkpoint")
        path = self._path(item["model"], (*keys, "model"))
        at = (*keys, "parameters")
        return _Model(path, _Level(self._mapping(item.get("parameters"), at), at), keys)

    def _path(self, name: Any, keys: "Keys") -> Path:
        if not isinstance(name, str) or not name:
            self.yaml.fail(keys, f"a model is a folder or a checkpoint, got {name!r}")
        found = next((path for path in (Path(name), self.folder / name) if is_there(path)), None)
        if found is None:
            why = (
                "adapters are merged by `neurograft merge-adapters`"
                if "+" in name
                else "models are not fetched from the hub"
            )
            self.yaml.fail(keys, f"{name}: no such folder or file, here or beside the recipe; {why}")
        return found

    def _roles(self, method: MergeMethod, models: list[_Model], base: Path | None) -> tuple[list[_Model], Path | None]:
        """The operator's members in their order, and the ancestor."""
        name = self.yaml.raw["merge_method"]
        others = [model for model in models if model.path != base]
        if base is None and method.base in ("ancestor", "first member"):
            self.yaml.fail(("merge_method",), f"{name} needs base_model:")
        if method.base == "first member":
            assert base is not None
            listed = [model for model in models if model.path == base]
            others = [*(listed or [_Model(base, _Level({}, ("base_model",)), ("base_model",))]), *others]
        elif method.base == "none" and base is not None:
            if len(others) == len(models):
                self.yaml.fail(("base_model",), f"{name} has no base: list {base} among the models, or leave it out")
            others = models
        if len(others) < 2:
            self.yaml.fail(("models",), f"{name} merges at least two models beside what is only the base")
        if method.operator.count is not None and len(others) != method.operator.count:
            self.yaml.fail(("models",), f"{name} merges {method.operator.count} models, got {len(others)}")
        return others, base if method.base in ("ancestor", "if given") else None

    def _check_parameters(self, method: MergeMethod, members: list[_Model], shared: list[_Level]) -> None:
        """Refuse parameters that the method does not know, or that all models share and one has of its own."""
        name = self.yaml.raw["merge_method"]
        for level in [*shared, *(member.level for member in members)]:
            for key in level.parameters:
                if key not in method.parameters:
                    self.yaml.fail((*level.keys, key), f"{name} has no parameter {key!r}; {_listed(key, method)}")
                if level not in shared and key not in method.each:
                    self.yaml.fail((*level.keys, key), f"{key} is one for all models: put it under parameters:")

    def _given(self, method: MergeMethod, name: str, levels: Iterable[_Level]) -> Any:
        """What a parameter is on several levels together; None where none has it."""
        option = method.each.get(name) or method.shared[name]
        allowed = next(own.metadata.get("range", Range()) for own in fields(method.operator) if own.name == option)
        found = []
        for level in levels:
            keys = (*level.keys, name)
            setting = self._setting(level.parameters.get(name), keys)
            if setting is not None:
                try:
                    check_setting(name, setting, allowed, False)
                except OptionError as error:
                    self.yaml.fail(keys, str(error))
            found.append(setting)
        return _merged(*found)

    def _each(self, method: MergeMethod, name: str, members: list[_Model], shared: list[_Level]) -> Any:
        """What every member is given of a parameter, None where nobody is given any."""
        option = method.each[name]
        given = []
        for member in members:
            own = self._given(method, name, [*shared, member.level])
            if own is None and name in method.required:
                self.yaml.fail(member.keys, f"{name}: is missing for {member.path}")
            given.append(_merged(method.defaults.get(option), own))
        return None if all(value is None for value in given) else [_or_default(method, option, v) for v in given]

    def _shared(self, method: MergeMethod, name: str, shared: list[_Level]) -> Any:
        """What a parameter is that all members share, None for the operator's default."""
        found = self._given(method, name, shared)
        if found is None:
            if name in method.required:
                self.yaml.fail(("merge_method",), f"{self.yaml.raw['merge_method']} needs {name}: under parameters:")
            return None
        own = next(own for own in fields(method.operator) if own.name == method.shared[name])
        if "range" not in own.metadata and not isinstance(found, float):
            self.yaml.fail(("parameters", name), f"{name} is one number")
        return int(found) if isinstance(own.default, int) and found == int(found) else found

    def _switches(self, method: MergeMethod, shared: list[_Level]) -> dict[str, bool]:
        found = dict(method.switches)
        for level in shared:
            for name in found.keys() & level.parameters.keys():
                value, keys = level.parameters[name], (*level.keys, name)
                if not isinstance(value, bool):
                    self.yaml.fail(keys, f"{name} is true or false for all tensors, got {value!r}")
                if value and name in method.refused:
                    self.yaml.fail(keys, f"{name}: {method.refused[name]}")
                found[name] = value
        return found

    def _setting(self, value: Any, keys: "Keys") -> Any:
        """A number, a gradient, or patterns with such, from what mergekit calls a parameter setting."""
        if value is None:
            return None
        if isinstance(value, dict):
            return self._filtered([value], keys, single=True)
        if isinstance(value, list):
            if value and all(isinstance(item, dict) for item in value):
                return self._filtered(value, keys)
            return Gradient([self._number(item, (*keys, i)) for i, item in enumerate(self._list(value, keys))])
        return self._number(value, keys)

    def _filtered(self, conditions: list[Any], keys: "Keys", single: bool = False) -> dict[str, Any]:
        """Patterns -> settings, of which the last that fits counts, where of mergekit's filters the first does."""
        found: dict[str, Any] = {}
        for i, condition in reversed(list(enumerate(conditions))):
            at = keys if single else (*keys, i)
            own = self._known(condition, at, ("filter", "value"))
            name, value = own.get("filter"), own.get("value")
            if isinstance(value, dict) or value is None or not isinstance(name, (str, type(None))):
                self.yaml.fail(at, "a filter is a part of a tensor's name, and value: a number or a list of numbers")
            pattern = "*" if name in (None, "*") else f"*{escape(name)}*"
            found.pop(pattern, None)
            found[pattern] = self._setting(value, (*at, "value"))
        return found

    def _number(self, value: Any, keys: "Keys") -> float:
        try:  # YAML takes 1e-3 for text
            number = float(value) if isinstance(value, (int, float, str)) and not isinstance(value, bool) else None
        except ValueError:
            number = None
        if number is None or not isfinite(number):
            self.yaml.fail(keys, f"{keys[-1]} is a number, a list of numbers or filters with such, got {value!r}")
        return number

    def _dtype(self, key: str) -> str | None:
        value = self.yaml.raw.get(key)
        if value is None:
            return None
        name = str(value).removeprefix("torch.")
        if name not in DTYPES:
            self.yaml.fail((key,), f"unknown {key} {value!r}; {closest(name, DTYPES)}")
        return name

    def _align(self, operator: Operator) -> Method | None:
        """The method that aligns: a name, or a mapping of method: and its options."""
        value = self.yaml.raw.get("align")
        if value is None:
            return None
        options = dict(value) if isinstance(value, dict) else {"method": value}
        try:
            made = method_of(options.pop("method", None), options)
            chosen, _ = choice_of(operator, {}, made)
        except OptionError as error:
            self.yaml.fail(("align",), str(error))
        return None if isinstance(chosen, Average) else chosen

    def _same_vocabulary(self, models: list[_Model]) -> bool:
        source = self.yaml.raw.get("tokenizer_source")
        if source is None:
            return False
        if source not in ("base", "union"):
            path = self._path(source, ("tokenizer_source",))
            if path not in [model.path for model in models]:
                self.yaml.fail(("tokenizer_source",), f"tokenizer_source {source} is none of the models")
        return True

    def _known(self, value: Any, keys: "Keys", known: tuple[str, ...]) -> dict[str, Any]:
        found = self._mapping(value, keys)
        for key in found:
            if key not in known:
                self.yaml.fail((*keys, key), f"unknown key {key!r}; {closest(str(key), known)}")
        return found

    def _mapping(self, value: Any, keys: "Keys") -> dict[str, Any]:
        if value is None:
            return {}
        if not isinstance(value, dict):
            self.yaml.fail(keys, f"{keys[-1]} is a mapping of keys to values, got {value!r}")
        return value

    def _list(self, value: Any, keys: "Keys") -> list[Any]:
        if not isinstance(value, list) or not value:
            self.yaml.fail(keys, f"{keys[-1]} is a list of at least one, got {value!r}")
        return value


def _listed(key: Any, method: MergeMethod) -> str:
    return closest(named(str(key)), method.parameters) if method.parameters else "it has none"


def _merged(*settings: Any) -> Any:
    """Settings of which a later one counts wherever it sets anything."""
    given = [own for own in settings if own is not None]
    if not given or not any(isinstance(own, dict) for own in given[-1:]):
        return given[-1] if given else None
    found: dict[str, Any] = {}
    for own in given:
        for pattern, value in (own if isinstance(own, dict) else {"*": own}).items():
            found.pop(pattern, None)
            found[pattern] = value
    return found


def _or_default(method: MergeMethod, option: str, value: Any) -> Any:
    """A member's value, or the default of the option where only others were given one."""
    if value is not None:
        return value
    return next(own.default for own in fields(method.operator) if own.name == option)


def _layers(path: Path) -> int | None:
    """How many layers the configuration of a model folder has."""
    try:
        content = json.loads((path / "config.json").read_bytes())
        return next((int(content[name]) for name in LAYER_COUNTS if name in content), None)
    except (OSError, ValueError, TypeError):
        return None
