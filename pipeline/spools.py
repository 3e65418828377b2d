"""Scratch of one video's rows: facts and the sidecars that were asked for, and what they need to say about cuts."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from pipeline.encode import PassWriters
from pipeline.records import CANDIDATES, MASKS, TOKENS
from pipeline.rowspool import RowSpool
from pipeline.settings import Settings
from pipeline.shot_log import ShotLog
from pipeline.shots import ShotDetector


class Spools:
    """Scratch of one video's rows: facts and the sidecars that the settings ask for; removed on close.

    Args:
        scratch: where the scratch folders are made.
        folder: where they lie for good instead, so that a later run can go on from where one died.
    Attributes:
        shots: what the merged facts need to say about scene cuts.
    """

    def __init__(self, settings: Settings, scratch: Path, folder: Path | None = None) -> None:
        looking = settings.propagate.on_cut != "ignore"
        self.shots = ShotLog(ShotDetector(settings.propagate.cut_threshold) if looking else None)

        def spool(name: str, schema: Any) -> RowSpool:
            return RowSpool(None if folder else scratch, schema, folder=folder and folder / name)

        self.masks = spool("masks", MASKS)
        self.candidates = spool("candidates", CANDIDATES) if settings.output.candidates else None
        self.tokens = spool("tokens", TOKENS) if settings.output.tokens else None

    def add_pass(self, name: str, *, descending: bool = False) -> PassWriters:
        """Writers of a next pass, or of one that was restored."""
        candidates, tokens = (
            None if spool is None else spool.add_pass(name, descending) for spool in (self.candidates, self.tokens)
        )
        return PassWriters(self.masks.add_pass(name, descending), candidates, tokens)

    def mark(self) -> dict[str, Any]:
        """Put every row on the disk for good; what `restore` takes."""
        return {"rows": [spool.mark() for spool in self._all()], "shots": self.shots.state()}

    def restore(self, mark: Mapping[str, Any]) -> None:
        """Take the rows that another process left in the folder, as of its mark.

        Raises: StorageError if a file is not what it was then.
        """
        for spool, marks in zip(self._all(), mark["rows"], strict=True):
            spool.restore(marks)
        self.shots = ShotLog.from_state(mark["shots"])

    def close(self) -> None:
        """Remove the scratch files, unless they are for good."""
        with ExitStack() as stack:
            for spool in self._all():
                stack.callback(spool.close)

    def _all(self) -> list[RowSpool]:
        return [spool for spool in (self.masks, self.candidates, self.tokens) if spool is not None]
