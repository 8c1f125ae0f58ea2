"""Where the trials are kept: an Optuna study in an SQLite file or on PostgreSQL, and locks that say who runs which.

A trial is run by whoever holds its lock. Locks end with their process (a locked file, or an advisory lock of a
PostgreSQL session), so that a trial whose process was killed is taken up at once, under its own number, and a trial
that somebody runs is never run twice.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from filelock import FileLock, Timeout

from luthier.errors import UserError, unwritable

PATIENCE = 30.0  # seconds that another's write is waited for


class StorageError(UserError):
    """The storage is locked, gone, or something else: the whole search stops."""


class Locks(Protocol):
    """Who runs which trial; every hold ends with the process."""

    def hold(self, number: int) -> bool:
        """Take the lock of a trial, if nobody has it."""

    def release(self, number: int) -> None:
        """Give it back."""

    def claiming(self) -> contextlib.AbstractContextManager[None]:
        """One process at a time chooses its next trial."""

    def close(self) -> None:
        """Give everything back."""


class FileLocks:
    """Locks beside an SQLite file: for processes on one machine, or on a file system that locks."""

    def __init__(self, folder: Path, name: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.name = folder, name
        self.held: dict[int, FileLock] = {}

    def _file(self, what: object) -> Path:
        return self.folder / f"{self.name}-{what}.lock"

    def hold(self, number: int) -> bool:
        """See Locks."""
        lock = FileLock(self._file(number), timeout=0)
        try:
            lock.acquire()
        except Timeout:
            return False
        self.held[number] = lock
        return True

    def release(self, number: int) -> None:
        """See Locks; the file goes too, since the trial has ended."""
        lock = self.held.pop(number, None)
        if lock is not None:
            with contextlib.suppress(OSError):
                self._file(number).unlink(missing_ok=True)
            lock.release()

    @contextlib.contextmanager
    def claiming(self) -> Iterator[None]:
        """See Locks."""
        with FileLock(self._file("claim")):
            yield

    def close(self) -> None:
        """See Locks."""
        for number in list(self.held):
            self.release(number)


class PostgresLocks:
    """Advisory locks of one PostgreSQL session: for processes on any number of machines."""

    def __init__(self, url: str, name: str) -> None:
        import psycopg

        self.connection = psycopg.connect(url, autocommit=True)
        self.space = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big", signed=True)

    def _ask(self, call: str, number: int) -> Any:
        row = self.connection.execute(f"SELECT {call}(%s::int, %s::int)", (self.space, number)).fetchone()
        return row[0] if row else None

    def hold(self, number: int) -> bool:
        """See Locks."""
        return bool(self._ask("pg_try_advisory_lock", number + 1))

    def release(self, number: int) -> None:
        """See Locks."""
        self._ask("pg_advisory_unlock", number + 1)

    @contextlib.contextmanager
    def claiming(self) -> Iterator[None]:
        """See Locks."""
        self._ask("pg_advisory_lock", 0)
        try:
            yield
        finally:
            self._ask("pg_advisory_unlock", 0)

    def close(self) -> None:
        """See Locks; they would end with the session too, but a moment later."""
        with contextlib.suppress(Exception):  # the server may be gone, and its locks with it
            self.connection.execute("SELECT pg_advisory_unlock_all()")
        self.connection.close()


@dataclass
class Place:
    """A storage that is open.

    Attributes:
        url: as SQLAlchemy reads it.
        said: the same for people, without a password.
        file: of SQLite, else None.
    """

    url: str
    said: str
    file: Path | None
    _seen: tuple[int, int] | None = field(default=None, repr=False)
    _made: Any = field(default=None, repr=False)

    @classmethod
    def of(cls, storage: str | None, folder: Path) -> Place:
        """From the recipe's word; $NAMES of the environment are put in, so that no password need stand in a recipe.

        Raises:
            UserError: for a URL of another kind.
        """
        given = os.path.expandvars(storage) if storage else str(folder / "search.db")
        kind, scheme, rest = given.partition("://")
        if scheme and kind.partition("+")[0] in ("postgresql", "postgres"):
            said = re.sub("^[^@/]*@", "", rest).partition("?")[0]  # neither user nor password, wherever they stand
            return cls(f"postgresql+psycopg://{rest}", f"postgresql://{said}", None)
        if scheme and kind != "sqlite":
            raise UserError(
                f"search.storage: {kind}:// is not known.", hint="Name an SQLite file, or a URL that begins with postgresql://."
            )
        file = Path(rest.removeprefix("/") if scheme else given).absolute()
        return cls(f"sqlite:///{file}", str(file), file)

    def locks(self, name: str) -> Locks:
        """The locks that belong to it."""
        if self.file is None:
            with self.told():
                return PostgresLocks(self.url.replace("+psycopg", "", 1), name)
        try:
            return FileLocks(self.file.with_name(f"{self.file.name}.locks"), name)
        except OSError as error:
            raise unwritable(self.file.parent, error) from None

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """One process at a time opens the storage: two that make its tables at once would be in each other's way."""
        locks = self.locks("opening")
        try:
            with self.told(), locks.claiming():
                yield
        finally:
            locks.close()

    def storage(self) -> Any:
        """Optuna's storage; its tables are made where there are none."""
        from optuna.storages import RDBStorage

        if self.file is not None:
            self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.told():
            wait = {"connect_args": {"timeout": PATIENCE}} if self.file is not None else {"pool_pre_ping": True}
            made = RDBStorage(self.url, engine_kwargs=wait)
        self._made = made
        self.check()
        return made

    def close(self) -> None:
        """Close what is open."""
        if self._made is not None:
            self._made.remove_session()
            self._made.engine.dispose()

    def check(self) -> None:
        """A file that was removed or replaced would be written to without a word, and be lost.

        Raises:
            UserError: if it is not the file that was opened.
        """
        if self.file is None:
            return
        try:
            now = self.file.stat()
            seen = (now.st_dev, now.st_ino)
        except OSError:
            seen = (-1, -1)
        self._seen = self._seen or seen
        if seen != self._seen or seen == (-1, -1):
            raise StorageError(
                f"The storage {self.said!r} is gone: it was removed, moved or replaced while the search ran.",
                hint="Put it back, then run the same command: it goes on with the trials that are in it.",
            )

    @contextlib.contextmanager
    def told(self) -> Iterator[None]:
        """What goes wrong with the storage, as a sentence."""
        import psycopg
        from optuna.exceptions import StorageInternalError
        from sqlalchemy.exc import SQLAlchemyError

        try:
            yield
        except (StorageInternalError, SQLAlchemyError, psycopg.Error) as error:
            cause: BaseException = error
            while cause.__cause__ is not None:
                cause = cause.__cause__
            raise _sentence(self, str(getattr(cause, "orig", None) or cause).strip()) from None


def _sentence(place: Place, cause: str) -> StorageError:
    """The sentence for a storage that can't be read or written."""
    again = "What was tried so far is kept; the same command goes on."
    first = (cause.splitlines() or ["no reason was given"])[0]
    if "locked" in first:
        return StorageError(
            f"The storage {place.said!r} is locked: another program has held it for {PATIENCE:g} seconds.",
            hint=f"Close what has it open. {again}",
        )
    if "not a database" in first or "no such column" in first:
        return StorageError(f"{place.said!r} is not a storage of a search ({first}).", hint="Name another file in search.storage.")
    if "readonly" in first or "unable to open" in first or "disk I/O" in first or "is full" in first:
        return StorageError(f"The storage {place.said!r} can't be written ({first}).", hint=f"Make it writable. {again}")
    return StorageError(f"The storage {place.said!r} does not answer ({first}).", hint=f"See that the server runs. {again}")
