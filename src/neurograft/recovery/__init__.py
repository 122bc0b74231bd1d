"""Recovery from unlabelled batches, without a gradient step."""
