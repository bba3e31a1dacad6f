"""`python -m snapmount` is the command `snapmount`."""

from .cli import main

if __name__ == "__main__":
    raise SystemExit(main())
