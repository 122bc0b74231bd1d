"""Which neurons stay, and how many."""
