"""Columns of numbers from a CSV file."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from thalweg.errors import InputError, first_line, unknown

if TYPE_CHECKING:
    import pandas as pd


# What may stand between columns instead of commas, and how a message calls it
_OTHER_MARKS = {";": "';'", "\t": "tabs", "|": "'|'"}


def read(path: Path, x: Sequence[str], y: str) -> dict[str, np.ndarray]:
    """The feature columns x (n, d) and the target y (n,) of a CSV file with a header.

    Raises:
        InputError: no such file or column, a missing value, text where numbers are needed.
    """
    import pandas as pd

    if not path.is_file():
        raise InputError(f"there is no file {path}.")
    try:
        with warnings.catch_warnings():
            # Rows longer than the header: pandas would shift or cut them, at most with this warning.
            warnings.simplefilter("error", pd.errors.ParserWarning)
            table = pd.read_csv(
                path, index_col=False, skipinitialspace=True, skip_blank_lines=False
            )
    except pd.errors.ParserWarning:
        _check_separator(path, _header(path))
        raise InputError(
            f"the rows of {path.name} have more fields than its header has names."
        ) from None
    except UnicodeDecodeError:
        raise InputError(f"{path} is not UTF-8 text; save it as CSV in that encoding.") from None
    except Exception as error:  # a packed file's: gzip, zip, xz and others have errors of their own
        raise InputError(f"{path} could not be read as CSV: {first_line(error)}.") from None
    twice = [name for name in (*x, y) if f"{name}.1" in table.columns]
    if twice and _header(path).count(twice[0]) > 1:
        raise InputError(f"{path.name} has several columns called {twice[0]!r}; rename them.")
    table = pd.DataFrame(table[~table.isna().all(axis=1)])
    for name in (*x, y):
        if name not in table.columns:
            _check_separator(path, list(map(str, table.columns)))
            raise unknown(f"column of {path.name}:", name, map(str, table.columns))
    if len(table) == 0:
        raise InputError(f"{path} has a header but no rows.")
    if len(set(x)) < len(x):
        raise InputError(f"a feature was given twice: {', '.join(x)}.")
    if y in x:
        raise InputError(f"column {y!r} is both a feature and the target.")
    return {
        "x": np.stack([_numbers(table, name, path) for name in x], axis=1),
        "y": _numbers(table, y, path),
    }


def _check_separator(path: Path, header: list[str]) -> None:
    found = [mark for mark in _OTHER_MARKS if len(header) == 1 and mark in header[0]]
    if found:
        raise InputError(
            f"{path.name} seems to be separated by {_OTHER_MARKS[found[0]]}; save it with commas between "
            "columns, and points in its numbers."
        )


def _header(path: Path) -> list[str]:
    """The names in a file's first line as they are: as names, pandas would tell duplicates apart."""
    import pandas as pd

    first = pd.read_csv(
        path, header=None, nrows=1, dtype=str, keep_default_na=False, skipinitialspace=True
    )
    return first.iloc[0].tolist()


def _numbers(table: pd.DataFrame, name: str, path: Path) -> np.ndarray:
    import pandas as pd

    column = pd.Series(table[name])

    # in the file: the header is line 1, and the index starts at 0
    line = np.asarray(column.index) + 2
    missing = np.asarray(column.isna())
    if missing.any():
        raise InputError(
            f"column {name!r} of {path.name} has {int(missing.sum())} missing values, the first in "
            f"line {line[missing.argmax()]}; drop or fill them first."
        )
    values = np.asarray(pd.to_numeric(column, errors="coerce"), float)
    text = np.isnan(values)
    if text.any():
        first = int(text.argmax())
        raise InputError(
            f"column {name!r} of {path.name} holds text, {column.iloc[first]!r} in line {line[first]}; "
            "numbers are needed."
        )
    infinite = np.isinf(values)
    if infinite.any():
        raise InputError(
            f"column {name!r} of {path.name} is not finite in line {line[infinite.argmax()]}; "
            "drop or fill it first."
        )
    return values
