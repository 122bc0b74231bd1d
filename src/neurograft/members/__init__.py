"""The networks that are fused: their states, settings and files."""
