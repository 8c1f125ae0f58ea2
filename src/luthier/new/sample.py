"""The first rows of an unknown file; a file that is no table is refused with the remedy."""

from __future__ import annotations

import csv
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.data import sources
from luthier.errors import UserError
from luthier.new.columns import Column, number_of
from luthier.new.names import LABELS, TEXTS, plain

LOOK = 20_000  # rows that are looked at
BROKEN = 0.1  # share of lines with too many or too few cells above which the file, not the line, is at fault


@dataclass(frozen=True)
class Sample:
    """What was looked at.

    Attributes:
        rows: (line, row).
        broken: (line, why) of lines that are no rows.
        whole: whether that is the whole file.
        says: the number of rows, in words.
    """

    rows: list[tuple[int, Mapping[str, Any]]]
    broken: list[tuple[int, str]]
    whole: bool
    says: str


def look(file: str) -> Sample:
    """The first rows; where their values come in long blocks the file may be sorted, and is read to its end.

    Raises:
        UserError: for a file that is missing, empty, without a header, or not of its format.
    """
    path = Path(file)
    if path.is_file() and path.suffix.lower() in (".csv", ".tsv"):
        _header(path)
    lines, _ = sources.open_source(file)
    rows: list[tuple[int, Mapping[str, Any]]] = []
    broken: list[tuple[int, str]] = []
    whole = True
    for line, row in lines:
        if "__broken__" in row:
            broken.append((line, str(row["__broken__"])))
            continue
        rows.append((line, row))
        if len(rows) > LOOK:
            whole = False
            break
    _refuse_broken(rows, broken, file)
    if whole:
        return Sample(rows, broken, True, f"{len(rows):,} row{'s'[: len(rows) != 1]}")
    if not _may_be_sorted([row for _, row in rows]):
        return Sample(rows[:LOOK], broken, False, f"more than {LOOK:,} rows; the first {LOOK:,} were looked at")
    rows, count = _spread(rows, lines)
    return Sample(rows, broken, False, f"{count:,} rows; {len(rows):,} of them, evenly spread, were looked at")


def _may_be_sorted(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether few-valued cells come in long blocks: then the first rows do not show every label."""
    for name in rows[0]:
        cells = [row.get(name) for row in rows]
        if any(isinstance(cell, (list, dict)) for cell in cells[:100]):
            continue
        distinct = len(set(map(str, cells)))
        changes = sum(one != two for one, two in itertools.pairwise(cells))
        if distinct < 0.02 * len(cells) and changes < 2 * distinct:
            return True
    return False


def _spread(rows: list[tuple[int, Mapping[str, Any]]], lines: Any) -> tuple[list[tuple[int, Mapping[str, Any]]], int]:
    """Every k-th row of the whole file, at most LOOK of them, and how many there are."""
    count, step = len(rows), 1
    for line, row in lines:
        if "__broken__" in row:
            continue
        if count % step == 0:
            rows.append((line, row))
        count += 1
        if len(rows) > LOOK:
            rows, step = rows[::2], 2 * step
    return rows, count


def _header(path: Path) -> None:
    """Refuse a file whose first line is no header, or whose columns are parted by something else.

    Raises:
        UserError: with the remedy.
    """
    mark = "," if path.suffix.lower() == ".csv" else "\t"
    csv.field_size_limit(sources.LONGEST_LINE)
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            first = next((line for line in lines if line.strip()), "")
    except UnicodeDecodeError as error:
        raise UserError(
            f"Not UTF-8: {error.reason} at byte {error.start}.",
            where=str(path),
            hint="Save it as UTF-8, or convert it:  "
            f"iconv -f {_coding(path)} -t UTF-8 {quoted(path)} > converted{path.suffix}",
        ) from None
    except OSError as error:
        raise UserError(f"Can't be read: {error.strerror}.", where=str(path)) from None
    if not first:
        raise UserError("The file is empty.", where=str(path))
    names, meant = _cells(first, mark), "commas" if mark == "," else "tabs"
    for other, called in ((";", "semicolons"), ("\t", "tabs"), (",", "commas"), ("|", "vertical bars")):
        if other != mark and len(names) == 1 and len(_cells(first, other)) > 1:
            rename = {"\t": ".tsv", ",": ".csv"}.get(other)
            raise UserError(
                f"The columns are parted by {called}, but {path.suffix} means {meant}.",
                where=f"{path}:1",
                hint=f"Rename it to {path.stem}{rename}."
                if rename
                else f"Save it with commas, or convert it:  {_convert(path, other)}",
            )
    refuse_values(names, path)


def _coding(path: Path) -> str:
    with path.open("rb") as file:
        return "UTF-16" if file.read(2) in (b"\xff\xfe", b"\xfe\xff") else "WINDOWS-1252"


def _cells(line: str, mark: str) -> list[str]:
    return [cell.strip() for cell in next(csv.reader([line], delimiter=mark), [])]


def refuse_values(names: Sequence[str], path: Path, columns: Sequence[Column] = ()) -> None:
    """Refuse names that are values: a number, a sentence, or a value that recurs below its own name.

    Raises:
        UserError: with a line of names to put on top.
    """
    if any(plain(name) in (*TEXTS, *LABELS) for name in names):
        return
    counted = [name for name in names if name != ""]
    values = [name for name in names if number_of(name) is not None or len(name) > 80 or len(name.split()) > 8]
    values += [column.name for column in columns if column.kind == "names" and column.counts[column.name] > 1]
    if values and counted != [str(number) for number in range(len(counted))]:  # 0,1,2 are pandas' names
        example = ",".join(["text", "label", *(f"column{n}" for n in range(3, len(names) + 1))][: len(names)])
        raise UserError(
            f"The first line looks like a row, not like names of columns: {values[0][:60]!r} is no name.",
            where=f"{path}:1",
            hint=f"Put a line of names on top, such as  {example}",
        )


def _convert(path: Path, mark: str) -> str:
    code = (
        "import csv; csv.writer(open('converted.csv', 'w', newline='', encoding='utf-8')).writerows("
        f"csv.reader(open({str(path)!r}, newline='', encoding='utf-8-sig'), delimiter={mark!r}))"
    )
    return f'python -c "{code}"'


def _refuse_broken(rows: list[Any], broken: list[tuple[int, str]], file: str) -> None:
    for line, why in broken:
        if "cells, but" not in why and Path(file).suffix.lower() in (".csv", ".tsv"):
            raise UserError(
                f"The quotes are broken: {why}.",
                where=f"{file}:{line}",
                hint="A cell with commas, quotes or line ends stands in quotes, and quotes inside it are doubled: "
                '"he said ""no""".',
            )
    if len(broken) > BROKEN * (len(rows) + len(broken)):
        line, why = broken[0]
        raise UserError(
            f"{len(broken):,} of {len(rows) + len(broken):,} lines are no rows; the first: {why}.",
            where=f"{file}:{line}",
            hint="A text with commas must stand in quotes. In JSONL each line is one JSON object.",
        )
    if not rows:
        raise UserError(
            "There are column names, but no rows.",
            where=file,
            hint="Add rows, two of each label at the least.",
        )


def quoted(path: Path) -> str:
    """The path as a shell takes it."""
    return f"'{path}'" if re.search(r"[^\w./\\:+=@-]", str(path)) else str(path)
