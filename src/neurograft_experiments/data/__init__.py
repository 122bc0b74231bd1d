"""Labelled images for experiments: loaded once, split by a seed, kept as bytes on the device."""

from neurograft_experiments.data.images import Images, Split, TensorBatches
from neurograft_experiments.data.loading import KNOWN, load_images
from neurograft_experiments.data.parts import label_groups, shards, special_class
from neurograft_experiments.data.pixels import Augmentation

__all__ = [
    "KNOWN",
    "Augmentation",
    "Images",
    "Split",
    "TensorBatches",
    "label_groups",
    "load_images",
    "shards",
    "special_class",
]
