"""The data sets that have a name here: where they are on the Hugging Face hub, and how the papers prepare them."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Known:
    """A data set.

    Attributes:
        hub: its name on the hub.
        configuration: its configuration there, which is also the folder of its parquet files.
        papers: mean and standard deviation of each channel, as both papers' code normalises; None if it does not use
            the data set.
    """

    hub: str
    configuration: str
    papers: tuple[tuple[float, ...], tuple[float, ...]] | None


KNOWN = {
    "mnist": Known("ylecun/mnist", "mnist", ((0.1307,), (0.3081,))),
    "fashion_mnist": Known("zalando-datasets/fashion_mnist", "fashion_mnist", None),
    "svhn": Known("ufldl-stanford/svhn", "cropped_digits", ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))),
    "cifar10": Known("uoft-cs/cifar10", "plain_text", ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))),
    "cifar100": Known("uoft-cs/cifar100", "cifar100", ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761))),
}
"""Name in a study file and on the command line -> the data set. The bundled digits need no entry."""
