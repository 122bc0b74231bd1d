"""Reading a study file: presets and cases put together, errors with the closest known key and the line."""

import math
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from importlib import resources
from itertools import product
from pathlib import Path
from typing import Any

from neurograft.errors import StudyError, closest
from neurograft.yaml_file import MOST_NESTED, Keys
from neurograft_experiments.study import PRESETS, About, StudySettings
from neurograft_experiments.study_text import StudyText, read_bounded

MOST_POINTS = 1000
"""Of a preset: cases times what varies."""
REPLACED = ("vary", "cases")
"""Keys whose mappings a preset or case replaces, where all others are merged."""


@dataclass(frozen=True, eq=False)
class Point:
    """One case of a study at one point of its grid.

    Attributes:
        case: its name, "" where the study has no cases.
        varied: dotted key -> value at this point.
        settings: with those values in.
    """

    case: str
    varied: Mapping[str, Any]
    settings: StudySettings


@dataclass(frozen=True, eq=False)
class Study:
    """A study file, checked.

    Attributes:
        name: of the file, without its ending.
        about: title, question, claims and plot.
        presets: name of a preset -> all its points.
    """

    name: str
    about: About
    presets: Mapping[str, tuple[Point, ...]]

    def points(self, preset: str) -> tuple[Point, ...]:
        """The points of a preset.

        Raises:
            StudyError: if the study has no such preset.
        """
        if preset not in self.presets:
            raise StudyError(f"study {self.name!r} has no preset {preset!r}; {closest(preset, self.presets)}")
        return self.presets[preset]


def study_names() -> tuple[str, ...]:
    """The studies that come with neurograft."""
    return tuple(sorted(entry.name[:-5] for entry in _folder().iterdir() if entry.name.endswith(".yaml")))


def load_study(study: str | Path) -> Study:
    """A study by the name of one that comes with neurograft, or from a YAML file.

    Raises:
        StudyError: no such study; an unknown key, with the closest known one; a value that cannot be meant. The
            message begins with the file and the line.

    Example:
        >>> load_study("comparison").about.paper
        'neuron transplantation'
    """
    name, file, text = _text(study)
    document = StudyText.read(text, file)
    known = [*About.model_fields, *StudySettings.model_fields, "cases", "presets"]
    for key in document.raw:
        if key not in known:
            document.fail((key,), f"unknown key {key!r}; {closest(str(key), known)}")
    about = document.checked(About, {k: v for k, v in document.raw.items() if k in About.model_fields}, ((),))
    body = {key: value for key, value in document.raw.items() if key in StudySettings.model_fields or key == "cases"}
    presets = document.raw.get("presets") or {}
    if not isinstance(presets, dict) or not presets:
        document.fail(("presets",), "presets must name at least one preset, such as smoke: {}")
    for preset in presets:
        if preset not in PRESETS:
            document.fail(("presets", preset), f"unknown preset {preset!r}; {closest(str(preset), PRESETS)}")
    points = {preset: tuple(_points(document, body, preset, own)) for preset, own in presets.items()}
    return Study(name, about, points)


def study_summaries() -> dict[str, tuple[str, str, tuple[str, ...]]]:
    """Of each study that comes with neurograft its title, question and presets; quick, nothing is checked."""
    found = {}
    for name in study_names():
        raw = StudyText.read(_text(name)[2], name).raw
        found[name] = (raw["title"], raw["question"], tuple(raw["presets"]))
    return found


def _folder() -> Any:
    return resources.files("neurograft_experiments") / "studies"


def _text(study: str | Path) -> tuple[str, str, str]:
    """Name, file (for messages) and text of a study."""
    if isinstance(study, str) and study in study_names():
        return study, f"{study}.yaml", (_folder() / f"{study}.yaml").read_text(encoding="utf-8")
    path = Path(study)
    if path.suffix not in (".yaml", ".yml"):
        raise StudyError(f"no study {str(study)!r}; {closest(str(study), study_names())}; or a file that ends in .yaml")
    return path.stem, str(path), read_bounded(path)


def _points(document: StudyText, body: dict[str, Any], preset: str, own: Any) -> Iterator[Point]:
    """All points of a preset: every case, and of it every combination of what varies."""
    if own is not None and not isinstance(own, dict):
        document.fail(("presets", preset), f"preset {preset} must be a mapping of what it changes, got {own!r}")
    known = [*StudySettings.model_fields, "cases"]
    for key in own or {}:
        if key not in known:
            document.fail(("presets", preset, key), f"unknown key {key!r} in a preset; {closest(str(key), known)}")
    merged = _merged(body, own or {})
    cases = merged.pop("cases", None) or {"": {}}
    if not isinstance(cases, dict):
        document.fail(("presets", preset, "cases"), f"cases must be a mapping of names, got {cases!r}")
    points = 0
    for case, changes in cases.items():
        prefixes: tuple[Keys, ...] = (
            ("presets", preset, "cases", case),
            ("cases", case),
            ("presets", preset),
            (),
        )
        if not isinstance(changes, (dict, type(None))):
            document.fail((), f"case {case!r} must be a mapping of what it changes, got {changes!r}", prefixes)
        full = _merged(merged, changes or {})
        base = document.checked(StudySettings, full, prefixes)
        points += math.prod(map(len, base.vary.values()))
        if points > MOST_POINTS:
            problem = f"preset {preset} has more than {MOST_POINTS:,} points (cases times the values that vary)"
            document.fail(("vary",), problem, prefixes)
        for values in product(*base.vary.values()):
            varied = dict(zip(base.vary, values, strict=True))
            at_point = deepcopy(full)
            for path, value in varied.items():
                _put(document, at_point, path, value, prefixes)
            settings = document.checked(StudySettings, at_point, prefixes, varied) if varied else base
            yield Point(str(case), varied, settings)


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `changes` laid over it, key by key; a network of another name replaces the old one."""
    result = dict(base)
    for key, value in changes.items():
        old = result.get(key)
        other_network = key == "network" and isinstance(value, dict) and "name" in value
        if isinstance(old, dict) and isinstance(value, dict) and key not in REPLACED and not other_network:
            result[key] = _merged(old, value)
        else:
            result[key] = value
    return result


def _put(document: StudyText, raw: dict[str, Any], path: str, value: Any, prefixes: tuple[Keys, ...]) -> None:
    """Set a dotted key in place; mappings on the way that are not there are made."""
    *way, last = path.split(".")
    if len(way) > MOST_NESTED:
        document.fail(("vary", path), f"vary: {path!r} leads through more than {MOST_NESTED} mappings", prefixes)
    for key in way:
        raw = raw[key] if isinstance(raw.get(key), dict) else raw.setdefault(key, {})
        if not isinstance(raw, dict):
            document.fail(("vary", path), f"vary: {path!r} leads through {key!r}, which is no mapping", prefixes)
    raw[last] = value
