"""``python -m execmem``: the same as the command ``execmem``."""

from execmem.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
