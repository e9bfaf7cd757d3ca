"""`python -m sweeps` is the program `sweeps`."""

from sweeps.cli.program import main

if __name__ == "__main__":
    main()
