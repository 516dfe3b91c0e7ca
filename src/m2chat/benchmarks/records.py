"""JSON records of others, read by the kind of each field: an error names file, record and field."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m2chat.errors import UserError
from m2chat.textfiles import lines_of, not_utf8, open_utf8

_NOT_UTF8 = "not UTF-8: save it as UTF-8"


@dataclass(frozen=True)
class JSONRecord:
    """A JSON object.

    Args:
        fields: Its content.
        where: Setting, file and record, for messages.
    """

    fields: Mapping[str, Any]
    where: str

    @classmethod
    def of(cls, value: object, where: str, needs: Sequence[str] = ()) -> JSONRecord:
        """A value as a record.

        Args:
            value: Value.
            where: Its place, for messages.
            needs: Fields that it must have.

        Raises:
            UserError: If it is no object with these fields.
        """
        if not isinstance(value, dict) or any(name not in value for name in needs):
            has = ", ".join(map(str, value)) if isinstance(value, dict) else type(value).__name__
            wanted = f"needs the fields {', '.join(needs)}" if needs else "must be an object"
            raise UserError(f"{where} {wanted}, and has {has or 'none'}; is it another benchmark?")
        return cls(value, where)

    def wrong(self, name: str, wanted: str) -> UserError:
        """The error of a field of another kind."""
        has = repr(self.fields[name])[:60] if name in self.fields else "missing"
        return UserError(f"{self.where}: the field {name!r} is {has}: it must be {wanted}")

    def text(self, name: str, blank: bool = False) -> str:
        """A text.

        Args:
            name: Field.
            blank: Whether it may be blank.

        Raises:
            UserError: If it is something else.
        """
        value = self.fields.get(name)
        if not isinstance(value, str) or not (blank or value.strip()):
            raise self.wrong(name, "a text")
        return value

    def words(self, name: str) -> str:
        """A text; empty if there is none (missing or null).

        Raises:
            UserError: If it is something else.
        """
        value = self.fields.get(name)
        if not isinstance(value, str | None):
            raise self.wrong(name, "a text or null")
        return value or ""

    def id(self, name: str) -> str:
        """A text that is not blank, or a whole number.

        Raises:
            UserError: If it is something else.
        """
        value = self.fields.get(name)
        if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
            raise self.wrong(name, "a text or a whole number")
        return str(value)

    def whole(self, name: str) -> int:
        """A whole number, or the text of one.

        Raises:
            UserError: If it is something else.
        """
        try:
            return int(self.id(name))
        except ValueError as error:
            raise self.wrong(name, "a whole number") from error

    def texts(self, name: str) -> list[str]:
        """A list of texts that are not blank.

        Raises:
            UserError: If it is something else.
        """
        value = self.fields.get(name)
        if not isinstance(value, list) or not all(isinstance(item, str) and item.strip() for item in value):
            raise self.wrong(name, "a list of texts")
        return value

    def records(self, name: str, needs: Sequence[str] = (), optional: bool = False) -> list[JSONRecord]:
        """A list of objects.

        Args:
            name: Field.
            needs: Fields that each of them must have.
            optional: Whether the list may be missing or null, and then is empty.

        Raises:
            UserError: If it is something else.
        """
        value = self.fields.get(name)
        if value is None and optional:
            return []
        if not isinstance(value, list):
            raise self.wrong(name, f"a list of objects{' or null' if optional else ''}")
        where = f"{self.where}: {name}"
        return [JSONRecord.of(item, f"{where}[{number}]", needs) for number, item in enumerate(value)]


def load_json(path: Path) -> Any:
    """The value of a JSON file.

    Raises:
        UserError: If there is none, or it is not JSON.
    """
    text = text_of_file(path)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({error}); is it the right file?") from error


def record_of_file(path: Path, needs: Sequence[str] = (), setting: str = "SRC") -> JSONRecord:
    """The object of a JSON file; arguments as for `records_of_file`."""
    return JSONRecord.of(load_json(path), f"{setting}: {path}", needs)


def records_of_file(path: Path, needs: Sequence[str] = (), setting: str = "SRC") -> list[JSONRecord]:
    """The objects of a JSON file that holds a list of them.

    Args:
        path: File.
        needs: Fields that each of them must have.
        setting: What names the file.

    Raises:
        UserError: If it holds something else.
    """
    value = load_json(path)
    if not isinstance(value, list):
        raise UserError(
            f"{setting}: {path} must hold a list of objects, and holds {type(value).__name__}; is it another benchmark?"
        )
    return [JSONRecord.of(item, f"{setting}: {path}: record {number}", needs) for number, item in enumerate(value)]


def records_of_lines(path: Path, needs: Sequence[str] = (), setting: str = "SRC") -> Iterator[JSONRecord]:
    """The objects of a file of JSON lines; arguments as for `records_of_file`."""
    for number, line in enumerate(lines_of(path), 1):
        if line.isspace():
            continue
        try:
            value = json.loads(line)
        except UnicodeDecodeError as error:
            raise not_utf8(path, line, _NOT_UTF8) from error
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"{path} is no file of JSON lines (line {number}: {error}); is it the right file?"
            ) from error
        yield JSONRecord.of(value, f"{setting}: {path}:{number}", needs)


def text_of_file(path: Path) -> str:
    """The text of a file.

    Raises:
        UserError: If it cannot be read, or its encoding is neither UTF-8 nor one that is detected.
    """
    with open_utf8(path) as file:
        data = file.read()
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise not_utf8(path, data, _NOT_UTF8) from error
