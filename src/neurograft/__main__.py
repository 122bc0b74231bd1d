"""`python -m neurograft` is `neurograft`: for `torchrun -m`, and where the command is not on the path."""

from neurograft.command_line.app import main

if __name__ == "__main__":
    main()
