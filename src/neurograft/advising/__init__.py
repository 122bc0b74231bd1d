"""Advice on a practitioner's own members: which recipe to fuse them by, or not to fuse."""
