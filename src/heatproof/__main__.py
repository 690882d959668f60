"""`python -m heatproof`."""

from heatproof.cli import main

if __name__ == "__main__":
    main()
