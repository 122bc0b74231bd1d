"""Every error neurograft raises on purpose.

NeurograftError
├── TraceError            the network could not be traced, or the proof failed
│   ├── UnruledOp         strict=True met an op that no rule describes
│   └── ProofFailed       permuting neurons changed the function (strict=True)
├── PlanError             the members cannot be fused as asked
│   ├── MembersDiffer     classes, tensors or shapes do not fit together
│   ├── BadWeights        NaN or infinite weights, or member weights that make no sense
│   └── Unreached         parameters beside free neurons that no example input reached
├── OptionError           an unknown method or option, or a value outside its range
├── InputError            example inputs or batches the networks cannot take
├── TrainingDiverged      the loss became NaN or infinite
├── ResizeError           the module cannot be given other widths
├── CheckpointError       a checkpoint cannot be read or written
├── RecipeError           a recipe says what cannot be merged
├── StudyError            a study file says what cannot be run
├── StoreError            results cannot be kept or read: a read-only folder, a full disk
└── MissingExtra          an optional package is needed; the message names the extra to install
"""

from collections.abc import Iterable
from difflib import get_close_matches

MOST_LISTED = 30  # known names in one message
LONGEST_COMPARED = 200  # letters: comparing takes time that grows with their square


class NeurograftError(Exception):
    """Root of the tree: the command line shows its message and exits with code 2."""


class TraceError(NeurograftError):
    """The network could not be traced."""


class UnruledOp(TraceError):
    """An op without a rule was met under `strict=True`."""


class ProofFailed(TraceError):
    """Moving neurons changed the outputs under `strict=True`."""


class PlanError(NeurograftError):
    """The members cannot be fused as asked."""


class MembersDiffer(PlanError):
    """The members' classes, tensors or shapes do not fit together."""


class BadWeights(PlanError):
    """A tensor holds NaN or infinity, or the members' weights make no sense."""


class Unreached(PlanError):
    """Parameters beside free neurons were not reached by any example input."""


class OptionError(NeurograftError, ValueError):
    """An unknown method or option, or a value outside its range."""


class InputError(NeurograftError, ValueError):
    """Example inputs or batches that the networks cannot take."""


class TrainingDiverged(NeurograftError):
    """The loss became NaN or infinite while training."""


class ResizeError(NeurograftError):
    """The module cannot be given other widths."""


class CheckpointError(NeurograftError):
    """A checkpoint cannot be read or written."""


class RecipeError(NeurograftError, ValueError):
    """A recipe has an unknown key or a value that cannot be meant, or asks for what is not implemented."""


class StudyError(NeurograftError, ValueError):
    """A study file has an unknown key or a value that cannot be meant, or its trials cannot be run."""


class StoreError(NeurograftError):
    """Results of experiments cannot be kept or read."""


class MissingExtra(NeurograftError, ImportError):
    """An optional package is needed that is not installed."""


def closest(name: str, known: Iterable[str]) -> str:
    """Name the known names that come closest to `name`, for the end of an error message.

    Example:
        >>> closest("transplnt", ["average", "transplant"])
        "did you mean 'transplant'? known: average, transplant"
    """
    names = sorted(known)
    near = get_close_matches(name[:LONGEST_COMPARED], names, n=2)
    hint = f"did you mean {' or '.join(repr(n) for n in near)}? " if near else ""
    more = f" and {len(names) - MOST_LISTED} more" if len(names) > MOST_LISTED else ""
    return f"{hint}known: {', '.join(names[:MOST_LISTED])}{more}"
