"""Labelled images for experiments: loaded once, split by a seed, kept as bytes on the device."""

from neurograft.experimenting.data.augmentation import Augmentation
from neurograft.experimenting.data.images import Images, Split, TensorBatches
from neurograft.experimenting.data.known import KNOWN
from neurograft.experimenting.data.loading import load_images
from neurograft.experimenting.data.parts import shards, special_class

__all__ = ["KNOWN", "Augmentation", "Images", "Split", "TensorBatches", "load_images", "shards", "special_class"]
