"""Answers leave the queue for the output: sealed so that none can be taken back any more, written, then marked."""

from __future__ import annotations

import sqlalchemy as sa

from pipeline.database import Database
from pipeline.ledger import forgotten_key
from pipeline.review.answers import Answer, write_answer
from pipeline.review.queue_tables import answers, remove_video
from pipeline.side_by_side import side_by_side
from pipeline.storage.objects import ObjectStore

WRITERS = 8
BATCH = 500


def export_answers(database: Database, store_identity: str, store: ObjectStore, kept_before: float) -> int:
    """Write out the answers that were kept at `kept_before` (Unix time in s) or earlier, and those of a run that died.

    Two that do it at the same time write the same bytes. An answer on a video that was forgotten is removed instead.

    Returns: how many were written out.
    Raises:  StorageError; what was not written is tried again next time.
    """
    mine = answers.c.store == store_identity
    due = mine & answers.c.state.in_(("kept", "sealed"))  # few, by an index
    due &= (answers.c.state == "sealed") | (answers.c.kept_at <= kept_before)
    query = sa.select(answers.c.answer_id, answers.c.body).where(due).limit(BATCH).with_for_update()

    def seal(connection: sa.Connection) -> list[Answer]:
        found = [Answer.model_validate_json(body) for _, body in connection.execute(query)]
        connection.execute(answers.update().where(_are(mine, found)).values(state="sealed"))
        return found

    written = 0
    while batch := database.run(seal):
        done: list[Answer] = []
        try:
            for answer, kept in side_by_side(lambda answer: _write(store, answer), batch, WRITERS, "export"):
                if kept:
                    done.append(answer)
                else:
                    database.run(lambda connection: remove_video(connection, store_identity, answer.video_id))  # noqa: B023
        finally:
            marked = answers.update().where(_are(mine, done)).values(state="exported")
            database.run(lambda connection: connection.execute(marked))  # noqa: B023
        written += len(done)
    return written


def _are(mine: sa.ColumnElement[bool], found: list[Answer]) -> sa.ColumnElement[bool]:
    return mine & answers.c.answer_id.in_([one.answer_id for one in found])


def _write(store: ObjectStore, answer: Answer) -> tuple[Answer, bool]:
    """Write an answer unless its video was forgotten. Returns: the answer, and whether it may stay."""
    if store.exists(forgotten_key(answer.video_id)):
        return answer, False
    write_answer(store, answer)
    return answer, True
