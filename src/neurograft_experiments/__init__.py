"""Data, small networks and the comparisons that are run on them."""
