"""Files of Apache Arrow and Parquet, read in pieces: some columns of all rows, or one cell."""

import bisect
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from itmfeat.errors import DataError, MissingPackageError

_ROWS = 2048  # of a table that are turned into Python objects at once


class Table:
    """An opened file. Its pieces are the record batches of Arrow, which are mapped, or Parquet's row groups.

    `columns` are its columns, `picture` is the one with pictures in it. Of Parquet the row group that a cell
    was last read from stays in memory: rows are asked for in order.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._group: tuple[int, str, Any] | None = None
        with _sentence(path):
            if path.suffix.lower() == ".parquet":
                import pyarrow.parquet as pq

                self._parquet = pq.ParquetFile(path, memory_map=True)
                schema = self._parquet.schema_arrow
                meta = self._parquet.metadata
                sizes = [meta.row_group(group).num_rows for group in range(meta.num_row_groups)]
            else:
                self._parquet = None
                schema, self._batches = _mapped(path)
                sizes = [batch.num_rows for batch in self._batches]
            self.columns: list[str] = schema.names
            self.picture = _picture_column(schema)
        self._starts = [0]
        for size in sizes:
            self._starts.append(self._starts[-1] + size)

    def rows(self, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        """All rows with these columns alone."""
        with _sentence(self.path):
            if self._parquet is not None:
                pieces = self._parquet.iter_batches(_ROWS, columns=list(columns))
            else:
                whole = (batch.select(list(columns)) for batch in self._batches)
                pieces = (batch.slice(at, _ROWS) for batch in whole for at in range(0, batch.num_rows, _ROWS))
            for piece in pieces:
                piece.validate(full=True)
                yield from piece.to_pylist() if columns else [{}] * piece.num_rows

    def cell(self, column: str, row: int) -> Any:
        """One value, as Python has it."""
        piece = bisect.bisect_right(self._starts, row) - 1
        with self._lock, _sentence(self.path):
            values = self._column(piece, column)
            value = values.slice(row - self._starts[piece], 1)
            value.validate(full=True)
            return value[0].as_py()

    def _column(self, piece: int, column: str) -> Any:
        if self._parquet is None:
            return self._batches[piece].column(column)
        if self._group is None or self._group[:2] != (piece, column):
            self._group = (piece, column, self._parquet.read_row_group(piece, [column]).column(column))
        return self._group[2]


def open_table(path: Path) -> Table:
    """The table in a file, opened once until it changes; a DataError if it is damaged or none."""
    state = path.stat()
    return _opened(path, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=64)
def _opened(path: Path, changed: int, size: int) -> Table:
    return Table(path)


def _picture_column(schema: Any) -> str:
    """The column with pictures in it: bytes, or bytes beside a path; empty where only files are named."""
    import pyarrow as pa

    for column in schema:
        kind = column.type
        inner = [kind.field(i).name for i in range(kind.num_fields)] if pa.types.is_struct(kind) else []
        if "bytes" in inner or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
            return str(column.name)
    return ""


def _mapped(path: Path) -> tuple[Any, list[Any]]:
    """Schema and batches of a file in Arrow's stream format, as `datasets` writes it, or its file format."""
    import pyarrow as pa

    source = pa.memory_map(str(path))
    if source.read(6) == b"ARROW1":
        reader = pa.ipc.open_file(source)
        return reader.schema, [reader.get_batch(i) for i in range(reader.num_record_batches)]
    source.seek(0)
    stream = pa.ipc.open_stream(source)
    return stream.schema, list(stream)


@contextmanager
def _sentence(path: Path) -> Iterator[None]:
    """What Arrow says of a damaged file, or that Arrow is missing, in a sentence."""
    try:
        import pyarrow as pa
    except ImportError as error:
        raise MissingPackageError(f"{path} needs pyarrow: pip install 'itmfeat[tables]'") from error
    try:
        yield
    except (pa.ArrowException, OSError, ValueError, KeyError, OverflowError) as error:
        said = (str(error) or type(error).__name__).splitlines()[0]
        raise DataError(f"{path} cannot be read as a table ({said}): copy or download it again") from error
