"""The command `snapmount`, which is `python -m snapmount` too."""

try:
    from .cli import main
except KeyboardInterrupt:  # main() deals with later ones
    raise SystemExit(130) from None

if __name__ == "__main__":
    raise SystemExit(main())
