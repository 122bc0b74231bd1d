"""Recovery by gradient steps: fine-tuning, and distilling from the members."""
