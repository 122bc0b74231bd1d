"""Commands that the experiments add to `neurograft`."""
