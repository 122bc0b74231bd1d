"""Pages and pictures that a person looks at."""
