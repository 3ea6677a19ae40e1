"""A table of labels: trainLabels.csv and its like."""

import csv
import re
from pathlib import Path
from typing import NamedTuple

from data.errors import InputError


class Label(NamedTuple):
    """A class as the table writes it, and the row of the file that it ends in, as an editor counts lines."""

    name: str
    row: int


def label_table(path: Path) -> dict[int, Label]:
    """The labels by id, in the order of the table.

    A byte order mark, CRLF line ends, quoted fields and empty lines are accepted.

    Raises:
        InputError: with the row.
    """
    labels: dict[int, Label] = {}
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            fields = (row for row in reader if row)
            header = next(fields, None)
            if header is None:
                raise InputError(f"{path}: cannot be read as CSV: it is empty; expected the header id,label")
            if header != ["id", "label"]:
                found = " ".join(",".join(header).split())
                raise InputError(f"{path}: the header is {found[:200]}; expected id,label")
            for row in fields:
                where = f"{path}, row {reader.line_num}"
                number = _checked_id(where, row)
                if number in labels:
                    raise InputError(f"{where}: the id {number} occurs twice; remove one of its rows")
                labels[number] = Label(row[1], reader.line_num)
    except csv.Error as error:
        raise InputError(
            f"{path}, row {reader.line_num}: cannot be read as CSV: {error}; expected id,label"
        ) from error
    except (UnicodeDecodeError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) else " ".join(str(error).split())
        raise InputError(f"{path}: cannot be read as CSV: {reason}; expected text in UTF-8") from error
    if not labels:
        raise InputError(f"{path}: no rows after the header; expected an id and a label in each")
    return labels


def _checked_id(where: str, row: list[str]) -> int:
    """The id of a row of id and label."""
    if len(row) > 2:
        raise InputError(f"{where}: cannot be read as CSV: {len(row)} fields; expected id,label")
    if not re.fullmatch("[0-9]{1,18}", row[0]):
        raise InputError(f"{where}: the id {row[0][:40]!r} is not a number; expected a number and a label")
    if len(row) < 2 or not row[1]:
        raise InputError(f"{where}: no label; add it, or remove the row and its image")
    if row[1] != row[1].strip() or re.search("[\x00-\x1f\x7f-\x9f]", row[1]):
        raise InputError(
            f"{where}: the label {row[1][:40]!r} has blanks around it, or is no text; write it plainly"
        )
    return int(row[0])
