"""Parts of the training images for members that do not all see the same."""

from collections.abc import Sequence

import torch
from torch import Tensor

from neurograft.errors import InputError, OptionError
from neurograft_experiments.data.images import Split


def special_class(split: Split, label: int, *, share: float = 0.1, seed: int = 0) -> tuple[Split, Split]:
    """Member A alone sees one class, and `share` of the rest; member B sees the other part of the rest.

    Args:
        split: what is divided; each image goes to one of the two.
        label: the class that only A sees.
        share: of the other classes, for A.
        seed: of the division.

    Raises:
        OptionError: if `share` is not between 0 and 1.
        InputError: if no image, or every one, is of that class.

    Example:
        >>> split = Split(torch.zeros(20, 1, 1, 1), torch.arange(20) % 2)
        >>> a, b = special_class(split, 1)
        >>> a.labels.bincount().tolist(), b.labels.bincount().tolist()
        ([1, 10], [9])

    Source: skill transfer of Singh & Jaggi 2020, arXiv:1910.05653, section 5.1.
    """
    if not 0 < share < 1:
        raise OptionError(f"share is between 0 and 1, got {share!r}")
    order = _order(split, seed)
    special = split.labels[order.to(split.labels.device)].cpu() == label
    own, rest = order[special], order[~special]
    if not len(own) or not len(rest):
        raise InputError(f"{len(own)} of {len(order)} images have label {label}; there must be some, and others")
    cut = round(share * len(rest))
    return split.subset(torch.cat([own, rest[:cut]])), split.subset(rest[cut:])


def shards(split: Split, count: int, *, concentration: float | None = None, seed: int = 0) -> tuple[Split, ...]:
    """Disjoint parts that together are the whole, as federated members hold them.

    Args:
        split: what is divided.
        count: how many parts.
        concentration: None for equal parts at random; otherwise each class is distributed over the parts by shares
            drawn from a symmetric Dirichlet distribution, the more unequal the smaller the number.
        seed: of the division.

    Raises:
        OptionError: if `count` is less than 1 or `concentration` not above 0.
        InputError: if a part would be empty.

    Example:
        >>> split = Split(torch.zeros(10, 1, 1, 1), torch.arange(10) % 2)
        >>> [len(part) for part in shards(split, 3)]
        [4, 3, 3]

    Source of the Dirichlet shares: Hsu et al. 2019, arXiv:1909.06335.
    """
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise OptionError(f"count is a whole number of at least 1, got {count!r}")
    order = _order(split, seed)
    if concentration is None:
        parts = list(order.tensor_split(count))
    elif concentration > 0:
        parts = _unequal(order, split.labels.cpu()[order], count, concentration, seed)
    else:
        raise OptionError(f"concentration is above 0, got {concentration!r}")
    return _parts(split, parts)


def label_groups(split: Split, count: int, *, others: float = 0.05, seed: int = 0) -> tuple[Split, ...]:
    """Disjoint parts of which each holds mostly images of a few classes, as clients of a federation do.

    Of C classes each of k members has w = max(2, ⌈C / k⌉): member m the classes m·w, …, m·w + w − 1 (mod C), so that
    with five members and ten classes each has two of its own. Every image goes to a member that has its class, at
    random where several do, and with probability `others` to any member.

    Args:
        split: what is divided; each image goes to one member.
        count: how many parts, at least 2.
        others: probability between 0 and 1.
        seed: of the division.

    Raises:
        OptionError: if `count` is less than 2 or `others` not a probability.
        InputError: if a part would be empty.

    Example:
        >>> split = Split(torch.zeros(40, 1, 1, 1), torch.arange(40) % 4)
        >>> [part.labels.bincount(minlength=4).tolist() for part in label_groups(split, 2, others=0)]
        [[10, 10, 0, 0], [0, 0, 10, 10]]

    Source of pairs of classes per client: McMahan et al. 2017, arXiv:1602.05629, section 3.
    """
    if isinstance(count, bool) or not isinstance(count, int) or count < 2:
        raise OptionError(f"count is a whole number of at least 2, got {count!r}")
    if not 0 <= others <= 1:
        raise OptionError(f"others is between 0 and 1, got {others!r}")
    random = torch.Generator().manual_seed(seed)
    labels = split.labels.cpu()
    classes = int(labels.max()) + 1
    width = max(2, -(-classes // count))
    has = torch.zeros(count, classes, dtype=torch.bool)
    for member in range(count):
        has[member, torch.arange(member * width, (member + 1) * width) % classes] = True
    owners = torch.multinomial(has.T.float()[labels], 1, generator=random).squeeze(1)
    anybody = torch.randint(count, (len(labels),), generator=random)
    chosen = torch.where(torch.rand(len(labels), generator=random) < others, anybody, owners)
    return _parts(split, [(chosen == member).nonzero().squeeze(1) for member in range(count)])


def _parts(split: Split, parts: Sequence[Tensor]) -> tuple[Split, ...]:
    for number, part in enumerate(parts):
        if not len(part):
            raise InputError(
                f"part {number} of {len(parts)} would hold none of the {len(split)} images; take fewer parts"
            )
    return tuple(split.subset(part) for part in parts)


def _order(split: Split, seed: int) -> Tensor:
    return torch.randperm(len(split), generator=torch.Generator().manual_seed(seed))


def _unequal(order: Tensor, labels: Tensor, count: int, concentration: float, seed: int) -> list[Tensor]:
    import numpy

    random = numpy.random.default_rng(seed)
    pieces: list[list[Tensor]] = [[] for _ in range(count)]
    for label in range(int(labels.max()) + 1):
        own = order[labels == label]
        ends = random.dirichlet([concentration] * count).cumsum()[:-1] * len(own)
        for piece, part in zip(pieces, own.tensor_split([round(end) for end in ends]), strict=True):
            piece.append(part)
    return [torch.cat(piece) for piece in pieces]
