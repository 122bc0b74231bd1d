"""The `neurograft` command: one file per subcommand."""
