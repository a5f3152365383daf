"""The index on SQLite: what its statements can get wrong of themselves."""

import random
from pathlib import Path
from typing import Any

from mailsrv.store.index import MailboxRecord, MessageRecord
from mailsrv.store.sqlite import MOST_PARAMETERS, SqliteIndex

MESSAGES = 2 * MOST_PARAMETERS + 200


class Heard:
    """A connection, and the statements it was given."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self.texts: set[str] = set()

    def execute(self, text: str, *values: Any) -> Any:
        self.texts.add(text)
        return self._connection.execute(text, *values)


def test_lists_of_all_lengths_give_each_message_once_and_are_a_few_statements(tmp_path: Path) -> None:
    """A connection keeps its last 64: one for each length would drive out all others, and take a megabyte of memory."""
    index = SqliteIndex(str(tmp_path / "index"))
    try:
        index.put_mailbox(MailboxRecord(1, "", "INBOX", 1, MESSAGES + 1, 0))
        index.insert(
            1,
            [MessageRecord(uid, f"m{uid}", 0, 0, 0, "", uid, 1, 0, 0, 0) for uid in range(1, MESSAGES + 1)],
        )
        heard = Heard(index._db)
        index._db = heard  # type: ignore[assignment]
        dice = random.Random(1)
        lengths = [*range(2, 70), 127, 128, 129, 257, 499, 500, 501, 777, 1000, 1001]
        for length in lengths:
            uids = sorted(dice.sample(range(1, MESSAGES + 1), length))
            assert [one.uid for one in index.records(1, uids)] == uids
        assert len(heard.texts) <= 1 + MOST_PARAMETERS.bit_length(), heard.texts  # a range, and powers of two
    finally:
        heard._connection.close()
