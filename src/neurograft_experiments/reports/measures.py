"""How a number of a row is printed."""

from dataclasses import dataclass

from neurograft_experiments.reports.results import Difference, Figure

MARKS = {1: " ↑", 0: " =", -1: " ↓"}
TUNINGS = {"none": "at once", "finetune": "fine-tuned", "distill": "distilled"}


@dataclass(frozen=True, slots=True)
class Measure:
    """Its words, with the unit of a value; what values are multiplied with; unit of a difference; decimals."""

    words: str
    scale: float = 1.0
    unit: str = ""
    digits: int = 3

    def shown(self, figure: Figure | float, digits: int | None = None) -> str:
        """Mean and standard deviation.

        Example:
            >>> measure_named("accuracy").shown(Figure(0.9, 0.0141), 1), measure_named("epochs").shown(Figure(3))
            ('90.0 ± 1.4', '3.0')
        """
        if not isinstance(figure, Figure):
            return f"{figure:g}"
        digits = self.digits if digits is None else digits
        mean, deviation = (f"{self.scale * number:.{digits}f}" for number in (figure.mean, figure.deviation))
        return "–" if not figure else mean if deviation == "nan" else f"{mean} ± {deviation}"

    def gap(self, difference: Difference) -> str:
        """A difference with its noise.

        Example:
            >>> measure_named("accuracy").gap(Difference(-0.01, 0.02))
            '−1.00 ± 2.00'
        """
        mean, noise = self.scale * difference.mean, self.scale * difference.noise
        return f"{mean:+.{self.digits}f} ± {noise:.{self.digits}f}".replace("-", "−")


MEASURES = {
    "accuracy": Measure("test accuracy in %", 100, "points", 2),
    "won back": Measure("won back of what fusing lost against the best member, in %", 100, "%", 0),
    "epochs": Measure("epochs until validation first reaches the best member", 1, "epochs", 1),
    "seconds.fuse": Measure("seconds of fusing", 1, "s"),
    "seconds.tune": Measure("seconds of training", 1, "s", 1),
    "memory": Measure("memory of fusing beyond the members, MB", 1e-6, "MB", 1),
}


def measure_named(path: str) -> Measure:
    """How to read a measure; one that is not known is a plain number.

    Example:
        >>> measure_named("memory").unit, measure_named("seconds.trace").words
        ('MB', 'seconds.trace')
    """
    return MEASURES.get(path, Measure(path))
