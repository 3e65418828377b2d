"""`python -m pipeline.cli` is `masksieve`."""

from __future__ import annotations

from pipeline.cli.entry import main

if __name__ == "__main__":
    main()
