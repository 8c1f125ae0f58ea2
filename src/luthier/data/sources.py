"""From files and hub sets to Rows. A format is one function that yields (line, row) and one line of SOURCES.

Rows stream into an Arrow file that is then memory-mapped, so a set ten times the memory can be read. The file lies
in the cache under the hash of what it was made from.
"""

from __future__ import annotations

import csv
import difflib
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from luthier.data.cells import without_nulls
from luthier.data.examples import RECORDS, BadRow, Record, Rows
from luthier.data.kinds import kind_of
from luthier.errors import UserError
from luthier.recipe import Data

Lines = Iterator[tuple[int, Mapping[str, Any]]]
CHUNK = 2000
LONGEST_LINE = 64 * 2**20  # a line of more bytes than this is no example


class BrokenLine(BadRow):
    """A line that is not of its format."""

    def __init__(self, line: int, reason: str) -> None:
        self.line = line
        super().__init__(reason)


def read_csv(path: Path, delimiter: str = ",") -> Lines:
    """Comma-separated values (RFC 4180) with a header, UTF-8."""
    csv.field_size_limit(LONGEST_LINE)
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        header = next(reader, None)
        if header is None:
            return
        names = [name.strip() or f"column {position}" for position, name in enumerate(header, 1)]
        if len(set(names)) != len(names):
            raise UserError(f"Two columns have the same name: {', '.join(names)}.", where=f"{path}:1")
        while True:
            line = reader.line_num + 1
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield line, {"__broken__": str(error)}
                return  # after a broken quote nothing can be told apart
            if not cells:
                continue
            if len(cells) != len(names):
                yield line, {"__broken__": f"{len(cells)} cells, but the header has {len(names)}"}
                continue
            yield line, dict(zip(names, cells, strict=True))


def read_tsv(path: Path) -> Lines:
    """Tab-separated values with a header, UTF-8."""
    return read_csv(path, "\t")


def read_jsonl(path: Path) -> Lines:
    """One JSON object a line, UTF-8."""
    with path.open(encoding="utf-8-sig") as file:
        for line, text in enumerate(file, 1):
            if not text.strip():
                continue
            try:
                row = json.loads(text)
            except (json.JSONDecodeError, RecursionError) as error:
                yield line, {"__broken__": f"not JSON: {error}"}
                continue
            yield line, row if isinstance(row, dict) else {"__broken__": "a JSON object was expected"}


def read_json(path: Path) -> Lines:
    """One JSON list of objects, or an object that holds one such list."""
    try:
        tree = json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise UserError(f"Not JSON: {error.msg}.", where=f"{path}:{error.lineno}") from None
    if isinstance(tree, dict):
        lists = [value for value in tree.values() if isinstance(value, list)]
        tree = lists[0] if len(lists) == 1 else None
    if not isinstance(tree, list):
        raise UserError(
            "A JSON list of objects was expected.", where=str(path), hint="JSONL is read too: name it .jsonl."
        )
    for number, row in enumerate(tree, 1):
        yield number, row if isinstance(row, dict) else {"__broken__": "a JSON object was expected"}


def _arrow_rows(batches: Any) -> Lines:
    """Rows of record batches, from 1."""
    number = 0
    for batch in batches:
        nested = [field.name for field in batch.schema if _holds_structs(field.type)]
        for row in batch.to_pylist():
            number += 1
            for column in nested:
                row[column] = without_nulls(row[column])
            yield number, row


def _holds_structs(kind: Any) -> bool:
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return _holds_structs(kind.value_type)
    return bool(pa.types.is_struct(kind))


def read_parquet(path: Path) -> Lines:
    """Apache Parquet."""
    import pyarrow.parquet as parquet

    with parquet.ParquetFile(path) as file:
        yield from _arrow_rows(file.iter_batches(CHUNK))


def read_arrow(path: Path) -> Lines:
    """An Arrow IPC file or stream, memory-mapped."""
    with pa.memory_map(str(path)) as source:
        try:
            table = pa.ipc.open_file(source).read_all()
        except pa.ArrowInvalid:
            source.seek(0)
            table = pa.ipc.open_stream(source).read_all()
        yield from _arrow_rows(table.to_batches(max_chunksize=CHUNK))


def read_folder(path: Path) -> Lines:
    """A folder written by `datasets.save_to_disk`."""
    import datasets

    loaded = datasets.load_from_disk(str(path))
    if isinstance(loaded, datasets.DatasetDict):
        hint = f"Name one folder, such as {path / next(iter(loaded))}."
        raise UserError(f"{path} holds several splits: {', '.join(loaded)}.", hint=hint)
    yield from _named_classes(loaded)


def read_hub(name: str) -> Lines:
    """A set of the Hugging Face hub: name, name#split or name:config#split."""
    import datasets

    base, _, split = name.partition("#")
    base, _, config = base.partition(":")
    try:
        loaded = datasets.load_dataset(base, config or None, split=split or "train")
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"The hub set {name!r} can't be loaded: {reason}",
            hint="Check the name and the network, or give a file (.csv, .tsv, .jsonl, .json, .parquet, .arrow).",
        ) from None
    yield from _named_classes(loaded)


def _named_classes(loaded: Any) -> Lines:
    """Rows of a `datasets.Dataset`, with class numbers replaced by their names."""
    names = {column: feature.names for column, feature in loaded.features.items() if hasattr(feature, "names")}
    nested = [field.name for field in loaded.features.arrow_schema if _holds_structs(field.type)]
    for number, row in enumerate(loaded, 1):
        for column, known in names.items():
            if isinstance(row.get(column), int) and 0 <= row[column] < len(known):
                row[column] = known[row[column]]
        for column in nested:
            row[column] = without_nulls(row[column])
        yield number, row


SOURCES: dict[str, Callable[[Path], Lines]] = {
    ".csv": read_csv,
    ".tsv": read_tsv,
    ".jsonl": read_jsonl,
    ".ndjson": read_jsonl,
    ".json": read_json,
    ".parquet": read_parquet,
    ".arrow": read_arrow,
}


def open_source(name: str) -> tuple[Lines, Callable[[], str]]:
    """The (line, row) pairs of a file, folder or hub set, and a function that gives the hash of its bytes."""
    path = Path(name)
    if path.is_dir():
        files = sorted(path.glob("*.arrow"))
        if not files:
            raise UserError(
                f"The folder {name!r} holds no .arrow file.", hint="A folder written by save_to_disk is read."
            )
        return read_folder(path), lambda: _hash_files(files)
    if path.is_file():
        reader = SOURCES.get(path.suffix.lower())
        if reader is None:
            raise UserError(
                f"The ending {path.suffix!r} is not known.",
                where=name,
                hint=f"Read are: {', '.join(SOURCES)}.",
            )
        if path.stat().st_size == 0:
            raise UserError("The file is empty.", where=name)
        return _readable(reader(path), name), lambda: _hash_files([path])
    if (
        path.suffix.lower() in SOURCES
        or name.startswith((".", "/", "~"))
        or not re.match(r"^[\w.-]+(/[\w.-]+)?[:#\w.-]*$", name)
    ):
        near = difflib.get_close_matches(path.name, os.listdir(path.parent) if path.parent.is_dir() else [], n=1)
        raise UserError(
            f"There is no file {name!r}.",
            hint=f"Did you mean {str(path.parent / near[0])!r}?" if near else None,
        )
    return read_hub(name), lambda: name


def _readable(lines: Lines, name: str) -> Lines:
    try:
        yield from lines
    except UnicodeDecodeError as error:
        raise UserError(
            f"Not UTF-8: {error.reason} at byte {error.start}.", where=name, hint="Save it as UTF-8."
        ) from None
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(f"Can't be read: {error}.", where=name) from None


def _hash_files(paths: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def load(name: str, data: Data, store: Path, *, expect: str | tuple[str, ...] | None = None) -> Rows:
    """Read one data set into memory-mapped rows.

    Args:
        name: file, folder or hub id.
        data: the recipe's data section (columns, label_separator, on_bad_row).
        store: folder for the Arrow files; one already there for the same bytes and options is used again.
        expect: the kind that the rows must have (eval and test follow train), or the kinds that they may have.

    Raises:
        UserError: for a missing or unreadable file, a missing column, a broken row (file:line), or no rows.
    """
    lines, content = open_source(name)
    below = data.judgements is not None and data.judgements.unranked == "below"
    options = json.dumps([data.columns, data.label_separator, data.on_bad_row, expect, below, 3], sort_keys=True)
    key = hashlib.sha256(f"{content()}|{options}".encode()).hexdigest()[:32]
    target = store / f"{key}.arrow"
    if Path(name).exists() and target.exists() and target.with_suffix(".json").exists():
        return _map(target, name)
    store.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=store, prefix="writing-", suffix=".arrow")
    os.close(handle)
    try:
        beside = _write(lines, name, data, expect, Path(temporary))
        _put(target.with_suffix(".json"), json.dumps(beside))
        os.replace(temporary, target)
    finally:
        Path(temporary).unlink(missing_ok=True)
    return _map(target, name)


def _put(path: Path, text: str) -> None:
    temporary = path.with_name(f"writing-{path.name}-{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def _write(lines: Lines, name: str, data: Data, expect: str | tuple[str, ...] | None, path: Path) -> dict[str, Any]:
    rename = {theirs: ours for ours, theirs in data.columns.items()}
    record: Record | None = None
    kind, chunk = "", []
    writer: Any = None
    digest, skipped, count = hashlib.sha256(), [], 0
    schema: Any = None
    for line, raw in lines:
        try:
            if "__broken__" in raw:
                raise BadRow(str(raw["__broken__"]))
            row = renamed(raw, rename)
            if data.judgements is not None and "ranks" in row:
                row.setdefault("unranked", data.judgements.unranked)
            if record is None:
                _check_columns(raw, data, name)
                kind = _kind(list(row), name, expect)
                record = RECORDS[kind]
                schema = record.schema.append(pa.field("line", pa.int64()))
                writer = pa.ipc.new_file(str(path), schema)
            parsed = record.parse(row, data.label_separator)
        except BadRow as error:
            if data.on_bad_row == "error":
                raise UserError(
                    f"{error}.",
                    where=f"{name}:{line}",
                    hint="Mend the row, or write  data: {on_bad_row: skip}  to leave such rows out.",
                ) from None
            skipped.append((line, str(error)))
            continue
        digest.update(json.dumps(parsed, ensure_ascii=False).encode("utf-8", "surrogatepass"))
        chunk.append({**parsed, "line": line})
        count += 1
        if len(chunk) == CHUNK:
            writer.write_batch(pa.RecordBatch.from_pylist(chunk, schema=schema))
            chunk = []
    if writer is None or count == 0:
        first = f"the first: line {skipped[0][0]}, {skipped[0][1]}" if skipped else ""
        reason = f" ({len(skipped)} broken rows were skipped, {first})" if skipped else ""
        raise UserError(f"No rows were found{reason}.", where=name)
    if chunk:
        writer.write_batch(pa.RecordBatch.from_pylist(chunk, schema=schema))
    writer.close()
    return {"kind": kind, "hash": digest.hexdigest(), "skipped": skipped}


def _kind(columns: list[str], name: str, expect: str | tuple[str, ...] | None) -> str:
    if isinstance(expect, str):
        if all(need in columns for need in RECORDS[expect].needs):
            return expect
        raise UserError(f"The rows are {kind_of(columns, name)!r}, but those of train are {expect!r}.", where=name)
    return kind_of(columns, name, expect or ())


def renamed(raw: Mapping[str, Any], rename: Mapping[str, str]) -> dict[str, Any]:
    """Our names for theirs; a column that bears one of our names but was not meant gives way."""
    taken = set(rename.values())
    return {rename.get(key, key): value for key, value in raw.items() if key in rename or key not in taken}


def _check_columns(raw: Mapping[str, Any], data: Data, name: str) -> None:
    for ours, theirs in data.columns.items():
        if theirs not in raw:
            near = difflib.get_close_matches(theirs, list(raw), n=1)
            raise UserError(
                f"There is no column {theirs!r} (wanted for {ours!r}). The columns are: {', '.join(raw)}.",
                where=name,
                hint=f"Did you mean {near[0]!r}?" if near else None,
            )


def _map(path: Path, source: str) -> Rows:
    with pa.memory_map(str(path)) as mapped:
        table = pa.ipc.open_file(mapped).read_all()
    beside = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    return Rows(beside["kind"], table, source, beside["hash"], tuple((line, why) for line, why in beside["skipped"]))
