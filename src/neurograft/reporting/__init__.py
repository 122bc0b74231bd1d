"""Tables on the terminal, and pages that a person looks at."""
