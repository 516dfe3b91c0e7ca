"""Parquet files, read some rows at a time; what pyarrow raises on broken ones becomes one clear error."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from m2chat.errors import UserError
from m2chat.files import by_number

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

_BATCH = 1000


@contextmanager
def opened_table(path: Path) -> Iterator[ParquetFile]:
    """A parquet file that is read through small buffers.

    Raises:
        UserError: If it is empty, broken, or no parquet, at any time until it is closed.
    """
    from pyarrow import ArrowException, parquet

    if not path.stat().st_size:
        raise UserError(f"{path} has 0 bytes, as a download that failed leaves it: download it again, or remove it")
    try:
        # Without the buffer, a column of pictures would be read a row group at a time: hundreds of megabytes.
        with parquet.ParquetFile(path, buffer_size=2**20) as file:
            yield file
    except (ArrowException, OSError) as error:
        raise UserError(f"{path} is broken or no parquet ({error}); download it again, or remove it") from error


def columns_of(path: Path) -> list[str]:
    """Names of the columns.

    Raises:
        UserError: If the file is empty, broken, or no parquet.
    """
    with opened_table(path) as file:
        return list(file.schema_arrow.names)


def rows_of(path: Path, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The rows of some columns.

    Raises:
        UserError: If the file is empty, broken, or no parquet.
    """
    with opened_table(path) as file:
        for batch in file.iter_batches(_BATCH, columns=list(columns)):
            yield from batch.to_pylist()


def count_of(paths: Sequence[Path]) -> int:
    """Number of rows of some files together.

    Raises:
        UserError: If one is empty, broken, or no parquet.
    """
    total = 0
    for path in paths:
        with opened_table(path) as file:
            total += file.metadata.num_rows
    return total


def parquet_files(src: Path) -> list[Path]:
    """The parquet files of SRC, by name and number: itself, or those in the folder.

    Raises:
        UserError: If there is none.
    """
    if src.is_file():
        return [src]
    files = sorted((path for path in src.rglob("*.parquet") if path.is_file()), key=by_number)
    if not files:
        raise UserError(f"SRC: {src} holds no .parquet; give a file or a folder of them")
    return files
