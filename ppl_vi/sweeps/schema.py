"""The tables of a file of results."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence

# Written into the header of every file, so that no other program's database is taken for one: "pplv".
APPLICATION_ID = 0x70706C76
# Raise it whenever a file could no longer be read by the code before. A new metric is a new column, and no new version.
VERSION = 1

TASK_COLUMNS = (
    "key", "model", "guide", "versions", "objective", "engine", "lr", "num_steps", "num_particles", "num_draws",
    "first_seed", "block", "seeds", "num_fits", "status", "reason", "engine_used", "engine_reason", "fit_seconds",
    "score_seconds", "finished", "notes", "digest",
)  # fmt: skip
TRUTH_COLUMNS = (
    "model", "problem", "x", "log_evidence", "log_evidence_error", "log_evidence_std_error", "method", "grade",
    "grade_reason", "truth_seconds",
)  # fmt: skip
FIT_COLUMNS = ("task", "problem", "seed", "status", "stop_reason", "steps")

TABLES = """
CREATE TABLE IF NOT EXISTS notes (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS sources (id INTEGER PRIMARY KEY, kind TEXT NOT NULL, label TEXT NOT NULL, key TEXT NOT NULL,
    details TEXT, current INTEGER NOT NULL, UNIQUE (kind, label, key));
CREATE TABLE IF NOT EXISTS truths (model INTEGER NOT NULL REFERENCES sources, problem INTEGER NOT NULL, x REAL,
    log_evidence REAL, log_evidence_error REAL, log_evidence_std_error REAL, method TEXT, grade TEXT, grade_reason TEXT,
    truth_seconds REAL, digest TEXT NOT NULL, PRIMARY KEY (model, problem));
CREATE TABLE IF NOT EXISTS tasks (id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE,
    model INTEGER NOT NULL REFERENCES sources, guide INTEGER NOT NULL REFERENCES sources,
    versions INTEGER NOT NULL REFERENCES sources, objective TEXT NOT NULL, engine TEXT NOT NULL, lr REAL NOT NULL,
    num_steps INTEGER NOT NULL, num_particles, num_draws INTEGER NOT NULL, first_seed INTEGER NOT NULL,
    block INTEGER NOT NULL, seeds TEXT NOT NULL, num_fits INTEGER NOT NULL, status TEXT NOT NULL, reason TEXT NOT NULL,
    engine_used TEXT, engine_reason TEXT, fit_seconds REAL, score_seconds REAL, finished REAL, notes TEXT,
    digest TEXT NOT NULL);
"""
# The columns of the view before those of the scores, each with where it comes from.
SHARED = {
    "model": "m.label", "problem": "f.problem", "x": "p.x", "guide": "g.label", "objective": "t.objective",
    "lr": "t.lr", "num_steps": "t.num_steps", "num_particles": "t.num_particles", "seed": "f.seed",
    "status": "f.status", "stop_reason": "f.stop_reason", "steps": "f.steps", "log_evidence": "p.log_evidence",
    "log_evidence_error": "p.log_evidence_error", "log_evidence_std_error": "p.log_evidence_std_error",
    "grade": "p.grade",
}  # fmt: skip
# Those after the scores. A batch's seconds are shared among its fits.
SHARED_AFTER = {
    "fit_seconds": "t.fit_seconds / t.num_fits", "score_seconds": "t.score_seconds / t.num_fits",
    "engine": "t.engine_used", "num_draws": "t.num_draws", "block": "t.block", "reason": "t.reason", "key": "t.key",
    "stale": "NOT (m.current AND g.current AND v.current)",
}  # fmt: skip


def score_columns_of(connection: sqlite3.Connection) -> list[str]:
    """The columns of scores that a file has; none before it has tables."""
    found = [row[1] for row in connection.execute("PRAGMA table_info(fits)")]
    return found[len(FIT_COLUMNS) :]


def create_statements(wanted: Sequence[str], there: Sequence[str]) -> Iterator[str]:
    """The statements that make the tables, or add the columns of new metrics to them."""
    yield from (statement for statement in TABLES.split(";") if statement.strip())
    if not there:
        scores = ", ".join(f"{name} REAL" for name in wanted)
        yield (
            "CREATE TABLE IF NOT EXISTS fits (task INTEGER NOT NULL, problem INTEGER NOT NULL, seed INTEGER NOT NULL, "
            f"status TEXT NOT NULL, stop_reason TEXT NOT NULL, steps INTEGER, {scores}, "
            "PRIMARY KEY (task, problem, seed)) WITHOUT ROWID"
        )
    yield from (f"ALTER TABLE fits ADD COLUMN {name} REAL" for name in wanted if there and name not in there)
    names = [*there, *(name for name in wanted if name not in there)]
    yield "DROP VIEW IF EXISTS results"
    yield _view(names)


def _view(scores: Sequence[str]) -> str:
    columns = [f"{source} AS {name}" for name, source in SHARED.items()]
    columns += [f"f.{name} AS {name}" for name in scores]
    columns += [f"{source} AS {name}" for name, source in SHARED_AFTER.items()]
    listed = ", ".join(columns)
    return (
        f"CREATE VIEW results AS SELECT {listed} FROM fits f JOIN tasks t ON t.id = f.task "
        "JOIN sources m ON m.id = t.model JOIN sources g ON g.id = t.guide JOIN sources v ON v.id = t.versions "
        "LEFT JOIN truths p ON p.model = t.model AND p.problem = f.problem"
    )
