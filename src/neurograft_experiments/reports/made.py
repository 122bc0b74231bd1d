"""How the rows of a report were made: commands, seeds, splits, commit, versions, hardware, time."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from neurograft.reporting.document import Code, Facts, Paragraph, Part
from neurograft.reporting.provenance import computer_text
from neurograft_experiments.reports.results import StudyResults

HONESTY = (
    "All rows of a setting have the same members, budget of epochs, batches and seeds. Learning rates and epochs were "
    "chosen on validation images, the test images were read once per network for what was chosen, and every "
    "measurement ran in eval mode."
)


def made_parts(results: StudyResults, name: str, preset: str, commands: Sequence[str]) -> Iterator[Part]:
    """The end of a report: the commands that make it, and where its rows come from."""
    rows = list(results.rows)
    there = f"{len(rows)} of {len(rows) + results.missing}"
    rest = " (the rest was not run, or failed)" if results.missing else ""
    yield Code("\n".join(commands))
    yield Facts({"study": f"{name}, preset {preset}", "results": there + rest} | (provenance_of(rows) if rows else {}))
    yield Paragraph(HONESTY, "note")


def provenance_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Where rows come from; where they differ, each of the values."""
    versions: dict[str, dict[str, None]] = {}
    for row in rows:
        for name, version in row["versions"].items():
            versions.setdefault(name, {})[version] = None
    facts = {
        "seeds": ", ".join(map(str, sorted({row["seed"] for row in rows}))),
        "splits": _each(_splits(row) for row in rows if row.get("test") and row.get("validation")),
        "commit": _each(row["commit"] for row in rows),
        "versions": ", ".join(f"{name} {' and '.join(found)}" for name, found in versions.items()),
        "hardware": _each(computer_text(row["hardware"]) for row in rows),
        "time": _duration(_spent(rows)),
    }
    return {name: value for name, value in facts.items() if value}


def _each(texts: Iterator[str]) -> str:
    return "; ".join(dict.fromkeys(texts))


def _splits(row: Mapping[str, Any]) -> str:
    validation, test = row["validation"]["samples"], row["test"]["samples"]
    used = (row.get("configuration", {}).get("data") or {}).get("samples")
    training = row.get("training", used - validation if isinstance(used, int) else 0)
    first = f"{training} training, " if training > 0 else ""
    return f"{row['data']}: {first}{validation} validation, {test} test images"


def _spent(rows: Sequence[Mapping[str, Any]]) -> float:
    """Seconds in all; a member that rows share counts once."""
    members: dict[frozenset[str], float] = {}
    total = 0.0
    for row in rows:
        seconds = {part: value or 0.0 for part, value in (row.get("seconds") or {}).items()}
        shared, tuned = seconds.pop("members", 0.0), seconds.pop("tune", 0.0)
        total += sum(seconds.values()) + (
            0.0 if "search" in seconds else tuned
        )  # the search tuned at every learning rate
        entries = row.get("configuration", {}).get("members") or ()
        if keys := frozenset(entry["key"] for entry in entries):
            members[keys] = max(members.get(keys, 0.0), shared)
    counted: set[str] = set()
    for keys, shared in sorted(members.items(), key=lambda item: -len(item[0])):
        total += shared * len(keys - counted) / len(keys)
        counted |= keys
    return total


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s of computing" if seconds < 100 else f"{seconds / 60:.0f} minutes of computing"
