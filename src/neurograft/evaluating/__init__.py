"""How good a network is, and what an ensemble of members outputs."""
