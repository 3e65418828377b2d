"""The command line `masksieve`; it owns everything that a person sees."""

from __future__ import annotations

from pipeline.cli.entry import app, main

__all__ = ["app", "main"]
