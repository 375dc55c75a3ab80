"""Arrays of other projects in `.npy` files: mapped, so that only what is asked for is read."""

import warnings
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
from numpy.typing import NDArray

from itmfeat.errors import DataError

Floats = NDArray[np.floating[Any]]


def mapped(file: Path, meaning: str, dimensions: tuple[int, ...]) -> Floats:
    """The floats of a file; nothing in a file can make anything be run (no pickle).

    `meaning` names the dimensions in the message for an array that has another number of them, or no numbers.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of headers that Python 2 wrote, as those of SCAN
            rows = np.lib.format.open_memmap(file, mode="r")
    except (OSError, ValueError, TypeError, SyntaxError, OverflowError, TokenError) as error:
        raise DataError(
            f"{file} is cut short or no plain .npy array of numbers; download or copy it again"
        ) from error
    if rows.dtype.kind != "f" or rows.itemsize > 8 or rows.ndim not in dimensions or not rows.size:
        raise DataError(f"{file} holds {rows.dtype} {rows.shape}, not floats ({meaning})")
    return rows
