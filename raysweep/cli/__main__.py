"""`python -m raysweep.cli`."""

from raysweep.cli.main import main

if __name__ == "__main__":
    main()
