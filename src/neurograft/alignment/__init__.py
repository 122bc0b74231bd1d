"""In which basis members meet: similarities, assignments, transport."""
