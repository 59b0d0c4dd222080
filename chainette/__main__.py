"""`python -m chainette` is the command `chainette`."""

from __future__ import annotations

from chainette.cli.main import main

__all__: list[str] = []

if __name__ == "__main__":
    main()
