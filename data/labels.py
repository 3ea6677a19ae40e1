"""A table of labels: trainLabels.csv and its like."""

import csv
import re
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from data.errors import InputError


class Label(NamedTuple):
    """name: the class, as written. row: the line of the file, as an editor counts."""

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
            rows = (row for row in reader if row)
            header = next(rows, None)
            if header is None:
                raise InputError(f"{path}: cannot be read as CSV: it is empty; expected the header id,label")
            if header != ["id", "label"]:
                found = " ".join(",".join(header).split())
                raise InputError(f"{path}: the header is {found[:200]}; expected id,label")
            for row in rows:
                if mistake := _mistake(row, labels):
                    raise InputError(f"{path}, row {reader.line_num}: {mistake}")
                labels[int(row[0])] = Label(row[1], reader.line_num)
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


def _mistake(row: list[str], labels: dict[int, Label]) -> str:
    """What is wrong with the fields of a row, and what to do; "" if they are an id that is new and a label."""
    if len(row) > 2:
        return f"cannot be read as CSV: {len(row)} fields; expected id,label"
    if not re.fullmatch("[0-9]{1,18}", row[0]):
        return f"the id {row[0][:40]!r} is not a number; expected a number and a label"
    if len(row) < 2 or not row[1]:
        return "no label; add it, or remove the row and its image"
    if not _is_plain(row[1]):
        return f"the label {row[1][:40]!r} has blanks around it, or is no text; write it plainly"
    if int(row[0]) in labels:
        return f"the id {int(row[0])} occurs twice; remove one of its rows"
    return ""


@lru_cache  # a table has few labels, each many times
def _is_plain(label: str) -> bool:
    return label == label.strip() and not re.search("[\x00-\x1f\x7f-\x9f]", label)
