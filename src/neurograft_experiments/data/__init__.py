"""Labelled images for experiments: loaded once, split by a seed, kept as bytes on the device."""

from neurograft_experiments.data.augmentation import Augmentation
from neurograft_experiments.data.images import Images, Split, TensorBatches
from neurograft_experiments.data.known import KNOWN
from neurograft_experiments.data.loading import load_images
from neurograft_experiments.data.parts import shards, special_class

__all__ = ["KNOWN", "Augmentation", "Images", "Split", "TensorBatches", "load_images", "shards", "special_class"]
