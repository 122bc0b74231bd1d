"""What the demonstration says: its table, its one sentence, and its page."""

from collections.abc import Iterator
from typing import Any

from neurograft.experimenting.comparison import BEST, CONTINUE, ENSEMBLE, Comparison, Outcome, Recovery, noise, rank
from neurograft.experimenting.data import Images
from neurograft.experimenting.networks import NETWORKS
from neurograft.reporting.document import Document, Facts, Heading, Paragraph, Part, Picture, Section
from neurograft.reporting.groups import groups_table
from neurograft.reporting.html import html_page
from neurograft.reporting.origins import origins_picture
from neurograft.reporting.plots import Curve, accuracy_chart
from neurograft.reporting.recovery import axis_end, recovery_picture, recovery_words
from neurograft.reporting.tables import Table

RECOVERIES: tuple[tuple[Recovery, str], ...] = (
    ("none", "at once"),
    ("refit", "refitted"),
    ("finetune", "fine-tuned"),
    ("distill", "distilled"),
)
TRAINED = RECOVERIES[2:]


def scores_table(title: str, comparison: Comparison, images: Images) -> Table:
    """Accuracies in percent, "validation / test", one row per start and one column per recovery."""
    names = list(dict.fromkeys(outcome.row for outcome in comparison.outcomes))
    single = [o for o in comparison.outcomes if o.row != ENSEMBLE]
    best = max(o.test.accuracy for o in single)
    limit = noise(best, len(images.test))
    cells, strong = [], set()
    for r, name in enumerate(names):
        row = [name]
        for c, (recovery, _) in enumerate(RECOVERIES, 1):
            outcome = comparison.find(name, recovery)
            row.append(_cell(outcome))
            if outcome is not None and outcome.row != ENSEMBLE and outcome.test.accuracy > best - limit:
                strong.add((r, c))
        cells.append(tuple(row))
    return Table(
        title=f"{title}: accuracy in %, validation / test",
        columns=("network", *(label for _, label in RECOVERIES)),
        rows=tuple(cells),
        numeric=len(RECOVERIES),
        strong=frozenset(strong),
        rules=frozenset({names.index(BEST) - 1, names.index(ENSEMBLE), names.index(CONTINUE)}),
        note=(
            "Refitted: layers solved in closed form on unlabelled training images. Distilled: taught by the members' "
            "mean output. Validation chose the epoch; each network read the test images once. Bold: not "
            f"distinguishable from the best single network (closer than {100 * limit:.1f} points, two standard errors "
            f"on {len(images.test)} images)."
        ),
    )


def _cell(outcome: Outcome | None) -> str:
    if outcome is None:
        return "–"
    return f"{100 * outcome.validation.accuracy:.1f} / {100 * outcome.test.accuracy:.1f}"


def chosen_fusion(comparison: Comparison) -> Outcome:
    """The fused and recovered network that validation prefers."""
    fused = [o for o in comparison.outcomes if o.row in comparison.plans]
    return max(fused, key=lambda o: rank(o.validation))


def takeaway(comparison: Comparison, images: Images) -> str:
    """One sentence: what validation would choose, beside what it must be compared with."""
    chosen = chosen_fusion(comparison)
    limit = noise(chosen.test.accuracy, len(images.test))
    how = {"none": "as it is", "refit": "refitted without training", "finetune": "fine-tuned", "distill": "distilled"}[
        chosen.recovery
    ]
    rivals = [("the best member", comparison.find(BEST, "none")), ("the ensemble", comparison.find(ENSEMBLE, "none"))]
    for recovery, label in TRAINED:
        rivals.append((f"the best member continued ({label})", comparison.find(CONTINUE, recovery)))
    verdicts: dict[str, list[str]] = {}
    for name, rival in rivals:
        if rival is not None:
            figure = f"{name} ({100 * rival.test.accuracy:.1f} %)"
            verdicts.setdefault(_verdict(chosen, rival, limit), []).append(figure)
    parts = [f"{verdict} {', '.join(figures)}" for verdict, figures in verdicts.items()]
    return (
        f"Validation prefers {chosen.row}, {how}: {100 * chosen.test.accuracy:.1f} % on the test images. "
        f"That is {'; '.join(parts)}."
    )


def _verdict(chosen: Outcome, rival: Outcome, limit: float) -> str:
    difference = chosen.test.accuracy - rival.test.accuracy
    if abs(difference) < limit:
        return "not distinguishable from"
    return f"{100 * abs(difference):.1f} points {'above' if difference > 0 else 'below'}"


def demo_page(
    comparisons: dict[str, Comparison], images: Images, settings: dict[str, Any], made: dict[str, Any], seconds: float
) -> str:
    """The whole page as HTML."""
    sections = [_section(name, comparison, images) for name, comparison in comparisons.items()]
    sections.append(Section("How this was made", (_facts(settings, made, seconds), Paragraph(_HONESTY, "note"))))
    members = settings["members"]
    lead = (
        f"{members} networks were trained from different seeds on the same {len(images.train)} images, fused into one "
        f"network of the same size, and trained on. The question is whether that one network can stand in for all "
        f"{members}."
    )
    return html_page(Document(f"neurograft: {members} networks into one", lead, tuple(sections)))


_HONESTY = (
    "All rows have the same budget of epochs, step size and seed. Epochs were chosen on the validation images, the "
    "test images were read once per network, every measurement ran in eval mode. It is one seed: repeat it with --seed "
    "before believing a small difference."
)
_REFITTED = (
    "How far each layer's output is from what the members say it should be: the ring before, the dot after (a dot "
    "alone where the weights were kept), as a share of what it should be. Orange layers add to a residual stream, and "
    "should give what is missing in it."
)
_OWNED = (
    "One strip per member: the stronger a cell, the more of that neuron went into the fused network; the faintest were "
    "left out, or share a fused neuron with many others. The strip below is the fused layer."
)
_ALIGNED = (
    "Every fused neuron is the mean of one neuron (or a mixture) of each member. Columns are the fused neurons; the "
    "shade says which neuron of the member arrives there, from its first (faint) to its last (strong). A smooth strip "
    "has kept its order."
)


def _section(name: str, comparison: Comparison, images: Images) -> Section:
    title = NETWORKS[name][0]
    graph = next(iter(comparison.plans.values())).graph
    parts: list[Part] = [
        Paragraph(takeaway(comparison, images), "takeaway"),
        scores_table(title, comparison, images),
        Heading("Recovery, epoch by epoch"),
        Paragraph(
            "Validation accuracy before and during training; the dot is the epoch that was kept. Distances on the "
            "vertical axis follow the logarithm of the error, so that each halving of the error is one step.",
            "soft",
        ),
    ]
    for recovery, label in TRAINED:
        parts.append(Paragraph(f"{label.capitalize()}:", "soft"))
        chart = accuracy_chart(_curves(comparison, recovery), title=f"{title}, {label}", x_label="epoch")
        parts.append(Picture(chart, f"{title}, {label}", f"{name}-{recovery}"))
    parts += _refitted(name, comparison)
    for method, plan in comparison.plans.items():
        picture = origins_picture(plan)
        if picture:
            parts.append(Heading(f"Where each fused neuron came from: {method}"))
            parts.append(Paragraph(_OWNED if plan.owned else _ALIGNED, "soft"))
            parts.append(Picture(picture, f"where each neuron of {method} came from", f"{name}-{method}-origins"))
            parts += [Paragraph(f"Warning: {text}", "note") for text in plan.warnings]
    parts += [Heading(f"The {len(graph)} neuron groups"), groups_table(graph)]
    return Section(title, tuple(parts))


def _refitted(name: str, comparison: Comparison) -> Iterator[Part]:
    """How far every layer was from the members before and after it was refitted, one picture per method."""
    yield Heading("Refitting, layer by layer")
    yield Paragraph(_REFITTED, "soft")
    end = axis_end(comparison.reports.values())
    for method, report in comparison.reports.items():
        yield Paragraph(f"{method}: {recovery_words(report)}", "soft")
        if picture := recovery_picture(report, end):
            yield Picture(picture, f"relative error of every layer of {method}", f"{name}-{method}-refit")


def _curves(comparison: Comparison, recovery: Recovery) -> list[Curve]:
    curves = []
    for row in (CONTINUE, *comparison.plans):
        if (outcome := comparison.find(row, recovery)) is not None:
            curves.append(Curve("continue best" if row == CONTINUE else row, outcome.curve, outcome.epoch))
    for row in (ENSEMBLE, BEST):
        if (outcome := comparison.find(row, "none")) is not None:
            curves.append(Curve(row, outcome.curve))
    return curves


def _facts(settings: dict[str, Any], made: dict[str, Any], seconds: float) -> Facts:
    splits = ", ".join(f"{count} {name}" for name, count in settings["splits"].items())
    hardware = made["hardware"]
    return Facts(
        {
            "data": f"{settings['data']}: {splits} images",
            "members": (
                f"{settings['members']}, {settings['member_epochs']} epochs, step size {settings['member_lr']}, "
                f"batches of {settings['batch']}"
            ),
            "recovery": f"{settings['recovery_epochs']} epochs, step size {settings['recovery_lr']}, momentum 0.9",
            "seed": str(settings["seed"]),
            "commit": made["commit"],
            "versions": ", ".join(f"{name} {version}" for name, version in made["versions"].items()),
            "hardware": ", ".join(
                [f"{hardware['cpu']}, {hardware['cores']} cores, {hardware['threads']} threads", hardware["system"]]
                + ([hardware["gpu"]] if hardware["gpu"] else [])
            ),
            "time": f"{seconds:.0f} s",
            "rows": "results.jsonl, beside this page",
        }
    )
