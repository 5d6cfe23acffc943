"""The store of calls: every reply that was ever paid for, by the key of its request, and what it cost.

A SQLite file. A reply is written in the moment it comes, so a process may be killed anywhere and the next one pays for
nothing again. Whatever is asked is first entered as pending, with the most that it can cost: a budget is kept even by a
process that is killed before the answer comes, since what it may have spent stays entered. Several processes may use
one file, but only one at a time writes on one account.
"""

import contextlib
import dataclasses
import errno
import hashlib
import json
import logging
import os
import pathlib
import random
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from msm_jax.errors import UserError
from msm_jax.llm.request import Finish, Reply, Request, Usage
from msm_jax.storage import files

_log = logging.getLogger(__name__)
_TABLES = """
PRAGMA journal_mode = WAL;  -- a reply survives the death of the process; that of the machine can take the last ones
PRAGMA synchronous = NORMAL;
CREATE TABLE IF NOT EXISTS calls (
    key TEXT, attempt INTEGER, payer TEXT, stage TEXT, model TEXT, request TEXT, reply TEXT, finish TEXT, detail TEXT,
    prompt_tokens INTEGER, cached_tokens INTEGER, output_tokens INTEGER, dollars REAL, seconds REAL, time REAL,
    PRIMARY KEY (key, attempt)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS texts (hash TEXT PRIMARY KEY, text TEXT) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS pending (
    id INTEGER PRIMARY KEY, key TEXT, payer TEXT, stage TEXT, dollars REAL, started REAL, lost INTEGER DEFAULT 0);
CREATE TABLE IF NOT EXISTS jobs (
    name TEXT PRIMARY KEY, id TEXT, payer TEXT, requests TEXT, dollars REAL, created REAL, done INTEGER DEFAULT 0);
CREATE TABLE IF NOT EXISTS batched (key TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS payers (payer TEXT PRIMARY KEY, spent REAL, reserved REAL);
"""

# From the store `copy` into this one. Rows of one reply, or of one pending call, are known by when they were written: a
# call that this store has settled is not pending again. What is on an account beside its calls stays on it.
_MERGE = """
BEGIN IMMEDIATE;
CREATE TEMP TABLE beside AS SELECT payer, sum(dollars) AS dollars FROM (
    SELECT payer, max(dollars) AS dollars FROM (
        SELECT payer, spent - (SELECT total(dollars) FROM main.calls WHERE payer = a.payer) AS dollars FROM payers AS a
        UNION ALL SELECT payer, spent - (SELECT total(dollars) FROM copy.calls WHERE payer = a.payer)
        FROM copy.payers AS a) GROUP BY payer
    UNION ALL SELECT b.payer, b.dollars FROM main.calls AS a JOIN copy.calls AS b USING (key, attempt)
    WHERE a.time != b.time) GROUP BY payer;
INSERT OR IGNORE INTO texts SELECT * FROM copy.texts;
INSERT OR IGNORE INTO batched SELECT * FROM copy.batched;
INSERT OR IGNORE INTO payers SELECT payer, 0, 0 FROM copy.payers;
INSERT OR IGNORE INTO main.calls SELECT * FROM copy.calls;
INSERT INTO pending (key, payer, stage, dollars, started, lost) SELECT key, payer, stage, dollars, started, 1
    FROM copy.pending AS b
    WHERE NOT EXISTS (SELECT 1 FROM main.pending AS a WHERE a.key = b.key AND a.started = b.started)
    AND NOT EXISTS (SELECT 1 FROM main.calls AS a WHERE a.key = b.key AND a.time >= b.started);
INSERT INTO jobs SELECT * FROM copy.jobs WHERE true ON CONFLICT (name) DO UPDATE SET id = max(id, excluded.id),
    done = max(done, excluded.done), requests = max(requests, excluded.requests);  -- '{}', of those done, is the larger
UPDATE payers SET
    spent = (SELECT total(dollars) FROM main.calls WHERE payer = payers.payer)
        + (SELECT total(dollars) FROM beside WHERE payer = payers.payer),
    reserved = (SELECT total(dollars) FROM main.pending WHERE payer = payers.payer)
        + (SELECT total(dollars) FROM main.jobs WHERE payer = payers.payer AND NOT done);
DROP TABLE beside;
COMMIT;
"""
_AMONG = "key IN (SELECT value FROM json_each(?))"
_END = "UPDATE jobs SET done = 1, requests = '{}' WHERE name = ?"
# Seconds between two copies of a store, or ten times as long as one takes.
_COPY_EVERY = 60.0


@dataclasses.dataclass(frozen=True)
class Spent:
    """Dollars of one payer."""

    paid: float  # for replies that are in the store
    reserved: float  # the most that calls without a reply may have cost, under way or lost
    lost: int  # calls whose reply never came: the process or the connection ended, and they may have been charged


@dataclasses.dataclass(frozen=True)
class Job:
    """A batch job."""

    name: str
    id: str  # the service's; empty while nobody knows whether it was sent
    keys: frozenset[str]
    dollars: float  # at most
    created: float  # when it was sent, or else entered, in Unix time
    own: bool  # whether it is on the account of this payer


class CallStore:
    """The file `path`, made if missing; `payer` is the experiment on whose account calls go. Raises: UserError, if the
    file is no store or cannot be written; OSError, if the disk is full."""

    def __init__(self, path: str | os.PathLike, payer: str):
        self.path, self.payer = pathlib.Path(path), payer
        with self._told():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(self.path, timeout=60, isolation_level=None)
            self._db.executescript(_TABLES)
            self._db.execute("INSERT OR IGNORE INTO payers VALUES (?, 0, 0)", (payer,))

    def close(self) -> None:
        self._db.close()

    def abandon(self) -> None:
        """What is pending has no process any more: it is lost. For the one process that works on the account."""
        with self._transaction():
            self._db.execute("UPDATE pending SET lost = 1 WHERE payer = ?", (self.payer,))

    def replies(self, key: str) -> list[Reply]:
        """What was replied to this request so far, first to last."""
        rows = self._rows(
            "SELECT reply, finish, prompt_tokens, cached_tokens, output_tokens, model, detail FROM calls "
            "WHERE key = ? ORDER BY attempt",
            (key,),
        )
        return [
            Reply(text, Finish(finish), Usage(prompt, cached, output), model, detail)
            for text, finish, prompt, cached, output, model, detail in rows
        ]

    def reserve(self, key: str, stage: str, dollars: float, budget: float) -> int | None:
        """Enters a call that may cost `dollars`. Returns its number, or None if that could exceed the budget."""
        with self._transaction():
            if not self._hold(dollars, budget):
                return None
            entered = self._db.execute(
                "INSERT INTO pending (key, payer, stage, dollars, started) VALUES (?, ?, ?, ?, ?)",
                (key, self.payer, stage, dollars, time.time()),
            )
            return entered.lastrowid

    def settle(self, pending: int, request: Request, key: str, reply: Reply, dollars: float) -> None:
        """The reply to a pending call came, and cost this."""
        with self._transaction():
            seconds = time.time() - self._take(pending)
            self._write(key, request.stage, self._described(request), reply, dollars, seconds, self.payer)

    def release(self, pending: int) -> None:
        """A pending call was turned away, and cost nothing."""
        with self._transaction():
            self._take(pending)

    def lose(self, pending: int) -> None:
        """A pending call has no reply, and may have been charged: its reservation stays."""
        with self._transaction():
            self._db.execute("UPDATE pending SET lost = 1 WHERE id = ?", (pending,))

    def open_job(self, name: str, requests: Mapping[str, Request], dollars: float, budget: float) -> bool:
        """Enters a batch job, key -> request, before it is sent. Returns whether the budget allows it."""
        with self._transaction():
            if not self._hold(dollars, budget):
                return False
            described = {key: [request.stage, self._described(request)] for key, request in requests.items()}
            self._db.execute(
                "INSERT INTO jobs (name, id, payer, requests, dollars, created) VALUES (?, '', ?, ?, ?, ?)",
                (name, self.payer, json.dumps(described), dollars, time.time()),
            )
            self._db.executemany("INSERT OR IGNORE INTO batched VALUES (?)", ((key,) for key in requests))
            return True

    def name_job(self, name: str, service_id: str) -> None:
        """The service's id of a job, which was sent now."""
        with self._transaction():
            self._db.execute("UPDATE jobs SET id = ?, created = ? WHERE name = ?", (service_id, time.time(), name))

    def drop_job(self, name: str) -> None:
        """A job that was entered was never sent: its requests may go into another."""
        with self._transaction():
            for requests, _, _ in self._ended(name):
                self._db.executemany("DELETE FROM batched WHERE key = ?", ((key,) for key in requests))
            self._db.execute("DELETE FROM jobs WHERE name = ?", (name,))

    def settle_job(self, name: str, replies: Sequence[tuple[str | None, Reply, float]]) -> None:
        """A batch job is over: (key, reply, dollars) of all that it answered. A reply that is to no request of it was
        paid for like the others: it is kept under the name of the job."""
        with self._transaction():
            for requests, created, payer in self._ended(name):
                for number, (key, reply, cost) in enumerate(replies):
                    about = requests.get(key, ("batch", "{}"))
                    key = key if key in requests else f"{name}/{number}"
                    self._write(key, *about, reply, cost, time.time() - created, payer)

    def lose_job(self, name: str) -> None:
        """A batch job was given up, and may be charged all the same: its reservation stays."""
        with self._transaction():
            self._db.execute(
                "INSERT INTO pending (key, payer, stage, dollars, started, lost) "
                "SELECT name, payer, 'batch', dollars, created, 1 FROM jobs WHERE name = ?",
                (name,),
            )
            self._db.execute(_END, (name,))

    def jobs(self) -> list[Job]:
        """Those that are not over, whoever pays for them, the oldest first."""
        rows = self._rows(
            "SELECT name, id, requests, dollars, created, payer FROM jobs WHERE NOT done ORDER BY created, name"
        )
        return [
            Job(name, job_id, frozenset(json.loads(requests)), dollars, created, payer == self.payer)
            for name, job_id, requests, dollars, created, payer in rows
        ]

    def was_batched(self, key: str) -> bool:
        """Whether a batch job has, or had, this request: it is not sent in another."""
        return bool(self._rows("SELECT 1 FROM batched WHERE key = ?", (key,)))

    def answered(self) -> int:
        """Replies to this payer that ended as they should."""
        [(count,)] = self._rows("SELECT count(*) FROM calls WHERE payer = ? AND finish = 'stop'", (self.payer,))
        return count

    def spent(self) -> Spent:
        [account] = self._rows(
            "SELECT spent, reserved, (SELECT count(*) FROM pending WHERE payer = a.payer AND lost) "
            "FROM payers AS a WHERE payer = ?",
            (self.payer,),
        )
        return Spent(*account)

    def stages(self, keys: Sequence[str] | None = None) -> dict[str, dict[str, float]]:
        """Calls, tokens and dollars by stage: of this payer, or of the replies to these keys, whoever paid."""
        of_keys = keys is not None
        rows = self._rows(
            "SELECT stage, count(*), sum(prompt_tokens), sum(cached_tokens), sum(output_tokens), sum(dollars) "
            f"FROM calls WHERE {_AMONG if of_keys else 'payer = ?'} GROUP BY stage ORDER BY min(time)",
            (json.dumps(list(keys)) if of_keys else self.payer,),
        )
        names = ("calls", "prompt_tokens", "cached_tokens", "output_tokens", "dollars")
        return {stage: dict(zip(names, values, strict=True)) for stage, *values in rows}

    def models(self, keys: Sequence[str]) -> list[str]:
        """The versions of the model that the replies to these keys are from, as the service named them."""
        rows = self._rows(f"SELECT DISTINCT model FROM calls WHERE {_AMONG}", (json.dumps(list(keys)),))
        return sorted(model for (model,) in rows if model)

    def absorb(self, copy: pathlib.Path) -> None:
        """Takes over what the store `copy` has and this one lacks: replies, accounts, batch jobs. What is pending there
        is lost: of its process nothing is known."""
        with self._told():
            self._db.execute("ATTACH ? AS copy", (str(copy),))
            try:
                marks = [self._db.execute(f"PRAGMA {name}.user_version").fetchone() for name in ("main", "copy")]
                if marks[0] != marks[1]:  # else it is of this very store, which has gone on since
                    self._db.executescript(_MERGE)
            finally:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                self._db.execute("DETACH copy")

    def copy(self, path: pathlib.Path) -> None:
        """Writes the store as it is at this moment to the file `path`; from any thread."""
        part = files.part_of(path)
        with self._told(), contextlib.closing(sqlite3.connect(self.path, timeout=60)) as source:
            source.execute(f"PRAGMA user_version = {random.randrange(1, 2**31)}")
            with contextlib.closing(sqlite3.connect(part)) as target:
                source.backup(target)
        os.replace(part, path)

    def _hold(self, dollars: float, budget: float) -> bool:
        """Reserves so much, if the budget allows it."""
        held = self._db.execute(
            "UPDATE payers SET reserved = reserved + ? WHERE payer = ? AND spent + reserved + ? <= ?",
            (dollars, self.payer, dollars, budget),
        )
        return held.rowcount == 1

    def _unreserve(self, dollars: float, payer: str) -> None:
        self._db.execute("UPDATE payers SET reserved = max(0, reserved - ?) WHERE payer = ?", (dollars, payer))

    def _take(self, pending: int) -> float:
        """Removes a pending call with its reservation. Returns when it began."""
        [(dollars, started)] = self._db.execute("SELECT dollars, started FROM pending WHERE id = ?", (pending,))
        self._db.execute("DELETE FROM pending WHERE id = ?", (pending,))
        self._unreserve(dollars, self.payer)
        return started

    def _ended(self, name: str) -> list[tuple[dict[str, Any], float, str]]:
        """Ends a job with its reservation. Returns (requests, when it was sent, payer), nothing if it was over."""
        jobs = self._rows("SELECT requests, created, payer, dollars FROM jobs WHERE name = ? AND NOT done", (name,))
        for *_, payer, dollars in jobs:
            self._unreserve(dollars, payer)
        self._db.execute(_END, (name,))
        return [(json.loads(requests), created, payer) for requests, created, payer, _ in jobs]

    def _described(self, request: Request) -> str:
        """What was asked, as JSON. The system prompt by its hash: it holds a whole spec, and thousands share it."""
        system = hashlib.sha256(request.system.encode()).hexdigest()[:16]
        self._db.execute("INSERT OR IGNORE INTO texts VALUES (?, ?)", (system, request.system))
        return json.dumps(request.canonical() | {"system": system})

    def _rows(self, query: str, values: Sequence[str] = ()) -> list[tuple]:
        with self._told():
            return list(self._db.execute(query, values))

    def _write(
        self, key: str, stage: str, described: str, reply: Reply, dollars: float, seconds: float, payer: str
    ) -> None:
        [(attempt,)] = self._db.execute("SELECT count(*) FROM calls WHERE key = ?", (key,))
        usage = reply.usage
        self._db.execute(
            f"INSERT INTO calls VALUES ({', '.join('?' * 15)})",
            (key, attempt, payer, stage, reply.model, described, reply.text, reply.finish.value, reply.detail,
             usage.prompt, usage.cached, usage.output, dollars, seconds, time.time()),
        )  # fmt: skip
        self._db.execute("UPDATE payers SET spent = spent + ? WHERE payer = ?", (dollars, payer))

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._told(), self._db:  # which commits, or rolls back
            self._db.execute("BEGIN IMMEDIATE")
            yield

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            if "full" in str(error):
                raise OSError(errno.ENOSPC, f"{self.path}: no space left") from error
            if isinstance(error, sqlite3.OperationalError):
                raise UserError(f"{self.path}: cannot be used as a store of calls ({error})") from None
            raise UserError(f"{self.path}: is no store of calls ({error}); name another file") from None


@contextlib.contextmanager
def copied(store: CallStore, copy: pathlib.Path, send: Callable[[pathlib.Path], None]) -> Iterator[None]:
    """Begins with what is in the file `copy`, if there is one; while it lasts and at its end the store is copied there,
    and `send` called with it, so that what was paid for outlives this machine. Raises: at the end, as `send` does."""
    if copy.exists():
        store.absorb(copy)
    over = threading.Event()

    def keep() -> None:
        store.copy(copy)
        send(copy)

    def keep_on() -> None:
        pause = _COPY_EVERY
        while not over.wait(pause):
            began = time.monotonic()
            try:
                keep()
            except (UserError, OSError) as error:
                _log.warning("%s is not copied for now, and will be tried again (%s)", store.path, error)
            pause = max(_COPY_EVERY, 10 * (time.monotonic() - began))

    thread = threading.Thread(target=keep_on, name="copies of the store", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        keep()
