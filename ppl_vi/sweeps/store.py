"""`Store`: the SQLite file of a sweep. What it says is done survives whatever ends a program.

Tables: `sources` has every model, guide and set of versions that was used, and whether it is the current one of its
label; `truths` a row for each problem of a model; `tasks` a row for each batch of fits; `fits` a row for each fit. The
view `results` joins them. All rows of a task are written in one transaction, and the task holds a digest of them.

One process writes at a time. It holds a lock on a second, empty file beside the first, which ends with the process.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ppl_vi.sweeps.checks import StoreError, check_file, check_kind, digest_of, explained, is_blank
from ppl_vi.sweeps.schema import (
    APPLICATION_ID,
    FIT_COLUMNS,
    TASK_COLUMNS,
    TRUTH_COLUMNS,
    VERSION,
    create_statements,
    score_columns_of,
)


@dataclass(frozen=True)
class StoredTask:
    """A task as the store has it."""

    id: int
    status: str
    seeds: tuple[int, ...]


class Reader:
    """A file of results, open for reading."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        if not check_file(self.path):
            raise StoreError(f"there are no results in '{path}': 'ppl-vi sweep' writes them")
        with explained(self.path):
            uri = f"{self.path.resolve().as_uri()}?mode=ro"
            self.connection = sqlite3.connect(uri, uri=True, isolation_level=None)
            try:
                if is_blank(self.connection):  # a sweep was about to begin
                    raise StoreError(f"there are no results in '{path}' yet")
                check_kind(self.connection, self.path)
                self.score_columns = score_columns_of(self.connection)
            except BaseException:
                self.connection.close()
                raise

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()

    def query(self, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """All rows of a query."""
        with explained(self.path):
            return self.connection.execute(statement, values).fetchall()

    def damaged(self) -> list[int]:
        """The tasks whose rows are not those that were written."""
        names = ", ".join(TRUTH_COLUMNS[1:])
        truths = self.query(f"SELECT model, digest, {names} FROM truths")
        bad = {model for model, digest, *values in truths if digest_of([values]) != digest}
        found = self.query("SELECT id, digest, model FROM tasks")
        return [task for task, digest, model in found if model in bad or digest_of(self.rows(task)) != digest]

    def rows(self, task: int) -> list[tuple[Any, ...]]:
        """The rows of a task, as they were written, in the order of problems and seeds."""
        names = ", ".join((*FIT_COLUMNS[1:], *self.score_columns))
        return self.query(f"SELECT {names} FROM fits WHERE task = ? ORDER BY problem, seed", (task,))

    def refuse_damaged(self) -> None:
        """Refuses a file with rows that are not those that were written.

        Raises:
            StoreError: there are some.
        """
        if bad := self.damaged():
            raise StoreError(
                f"'{self.path}': the rows of {len(bad)} of its tasks are damaged; run the sweep on it again, which "
                "computes these anew"
            )


class Store(Reader):
    """A file of results, open for writing by this process alone."""

    def __init__(self, path: Path, score_columns: Sequence[str], max_pages: int | None = None) -> None:
        self.path = Path(path)
        exists = check_file(self.path)
        self._lock = _locked(self.path)
        try:
            with explained(self.path):
                self.connection = sqlite3.connect(self.path, isolation_level=None)
                self._prepare(exists, score_columns, max_pages)
                self.score_columns = score_columns_of(self.connection)
        except BaseException:
            self._lock.close()
            raise

    def _prepare(self, exists: bool, score_columns: Sequence[str], max_pages: int | None) -> None:
        connection = self.connection
        try:
            if exists and not is_blank(connection):
                check_kind(connection, self.path)
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            if max_pages is not None:
                connection.execute(f"PRAGMA max_page_count = {max_pages}")
            with self.transaction():
                for statement in create_statements(score_columns, score_columns_of(connection)):
                    connection.execute(statement)
                connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                connection.execute(f"PRAGMA user_version = {VERSION}")
        except BaseException:
            connection.close()
            raise

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(sqlite3.Error):  # what is in the log is as safe as what is in the file
            self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self.connection.close()
        self._lock.close()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All that is written in the block, or nothing of it."""
        with explained(self.path):
            self.connection.execute("BEGIN IMMEDIATE")
            try:
                yield self.connection
                self.connection.execute("COMMIT")
            except BaseException:
                if self.connection.in_transaction:
                    self.connection.execute("ROLLBACK")
                raise

    def tasks(self) -> dict[str, StoredTask]:
        """The tasks that are stored, by key."""
        found = self.query("SELECT key, id, status, seeds FROM tasks")
        return {key: StoredTask(task, status, tuple(json.loads(seeds))) for key, task, status, seeds in found}

    def drop(self, tasks: Iterable[int]) -> None:
        """Removes tasks with their rows, in one transaction."""
        with self.transaction() as connection:
            for task in tasks:
                connection.execute("DELETE FROM fits WHERE task = ?", (task,))
                connection.execute("DELETE FROM tasks WHERE id = ?", (task,))

    def source(self, kind: str, label: str, key: str, details: Any = None) -> int:
        """The number of a model, guide or set of versions, which becomes the current one of its label."""
        with self.transaction() as connection:
            connection.execute(
                "INSERT OR IGNORE INTO sources (kind, label, key, details, current) VALUES (?, ?, ?, ?, 1)",
                (kind, label, key, json.dumps(details)),
            )
            connection.execute(
                "UPDATE sources SET current = (key = ?) WHERE kind = ? AND label = ?", (key, kind, label)
            )
        return int(
            self.query("SELECT id FROM sources WHERE kind = ? AND label = ? AND key = ?", (kind, label, key))[0][0]
        )

    def write_truth(self, model: int, rows: Iterable[dict[str, Any]]) -> None:
        """Stores the truth of each problem of a model."""
        with self.transaction() as connection:
            for row in rows:
                values = [row[name] for name in TRUTH_COLUMNS[1:]]
                marks = ", ".join("?" * (len(values) + 2))
                connection.execute(
                    f"INSERT OR REPLACE INTO truths ({', '.join(TRUTH_COLUMNS)}, digest) VALUES ({marks})",
                    (model, *values, digest_of([values])),
                )

    def write_task(self, task: dict[str, Any], columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> int:
        """Stores a task with all of its rows, in one transaction, in place of what there was of it.

        Args:
            task: its values by column, but for the digest.
            columns: of the scores in the rows; the others are those of `schema.FIT_COLUMNS`.
            rows: see `ppl_vi.sweeps.tasks.Outcome`.
        """
        rows = self.in_order(columns, rows)
        values = task | {"digest": digest_of(rows), "finished": task.get("finished") or time.time()}
        names = ", ".join(TASK_COLUMNS)
        with self.transaction() as connection:
            old = connection.execute("SELECT id FROM tasks WHERE key = ?", (task["key"],)).fetchone()
            if old:
                connection.execute("DELETE FROM fits WHERE task = ?", old)
                connection.execute("DELETE FROM tasks WHERE id = ?", old)
            done = connection.execute(
                f"INSERT INTO tasks ({names}) VALUES ({', '.join('?' * len(TASK_COLUMNS))})",
                [values[name] for name in TASK_COLUMNS],
            )
            marks = ", ".join("?" * (len(FIT_COLUMNS) + len(self.score_columns)))
            connection.executemany(f"INSERT INTO fits VALUES ({marks})", [(done.lastrowid, *row) for row in rows])
        return int(done.lastrowid or 0)

    def in_order(self, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[tuple[Any, ...]]:
        """Rows with the file's columns in their order, sorted by problem and seed."""
        if list(columns) != self.score_columns:
            place = {name: 5 + i for i, name in enumerate(columns)}
            chosen = [place.get(name) for name in self.score_columns]
            rows = [(*row[:5], *(None if i is None else row[i] for i in chosen)) for row in rows]
        return sorted((tuple(row) for row in rows), key=lambda row: (row[0], row[1]))

    def note(self, **values: Any) -> None:
        """Stores what the file as a whole says, such as how many fits are planned."""
        with self.transaction() as connection:
            for name, value in values.items():
                connection.execute("INSERT OR REPLACE INTO notes VALUES (?, ?)", (name, json.dumps(value)))


def _locked(path: Path) -> sqlite3.Connection:
    """A connection that holds the lock of a file of results until it is closed or this process ends.

    Raises:
        StoreError: another process holds it, or the folder can't be written to.
    """
    lock = path.with_name(path.name + "-lock")
    try:
        connection = sqlite3.connect(lock, timeout=0, isolation_level=None)
        try:
            connection.execute("BEGIN EXCLUSIVE")
        except BaseException:
            connection.close()
            raise
        return connection
    except sqlite3.Error as error:
        if (getattr(error, "sqlite_errorname", "") or "").startswith("SQLITE_BUSY"):
            raise StoreError(
                f"'{path}' is being written by another sweep: wait until that has ended, or choose another file"
            ) from error
        raise StoreError(f"can't write '{path}': {error}") from error


def is_written(path: Path) -> bool:
    """Whether a sweep is writing to a file now."""
    if not path.with_name(path.name + "-lock").exists():
        return False
    try:
        with closing(_locked(path)):
            return False
    except StoreError:
        return True
