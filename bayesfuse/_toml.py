"""Tables of a TOML file, read key by key: errors name line and key, and say what was expected."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


class Section:
    """A table whose keys are taken out one by one; what is left over in the end is unknown."""

    def __init__(self, table: Mapping[str, Any], name: str, text: str, home: Path, occurrence: int = 0) -> None:
        self._left = dict(table)
        self._known: list[str] = []
        self.name, self._text, self._home, self._occurrence = name, text, home, occurrence

    def error(self, key: str, problem: str) -> ValueError:
        """A ValueError about a key, with its line where there is one."""
        line = _line_of(self._text, self.name, key, self._occurrence)
        where = f"line {line}: " if line else ""
        section = f"[{self.name}] " if self.name else ""
        return ValueError(f"{where}{section}{key}: {problem}.")

    def get(
        self,
        key: str,
        kind: type | tuple[type, ...],
        default: Any,
        accept: Callable[[Any], bool] = lambda value: True,
        expected: str = "",
    ) -> Any:
        """The value of a key; `...` as the default makes it necessary."""
        self._known.append(key)
        expected = expected or {str: "a text", bool: "true or false", dict: "a table"}.get(kind, "")  # pyright: ignore
        if key not in self._left:
            if default is ...:
                raise self.error(key, f"is missing; expected {expected}")
            return default
        value = self._left.pop(key)
        numeric = kind in (int, float) or isinstance(kind, tuple)
        kinds = (int, float) if kind is float else kind
        if (numeric and isinstance(value, bool)) or not isinstance(value, kinds) or not accept(value):
            raise self.error(key, f"got {value!r}; expected {expected}")
        return value

    def texts(self, key: str, choices: tuple[str, ...] = ()) -> tuple[str, ...]:
        """A list of different texts, empty by default."""

        def fits(value: list[Any]) -> bool:
            known = all(isinstance(item, str) and item and (not choices or item in choices) for item in value)
            return known and len(set(value)) == len(value)

        among = f" of {', '.join(choices)}" if choices else ""
        return tuple(self.get(key, list, [], fits, f'a list of different texts{among}, such as ["..."]'))

    def orders(self, key: str, default: Any) -> tuple[int, ...]:
        """One order or a list of different ones."""

        def fits(value: Any) -> bool:
            items = value if isinstance(value, list) else [value]
            good = all(isinstance(k, int) and not isinstance(k, bool) and k >= 1 for k in items)
            return good and 0 < len(items) == len(set(items))

        found = self.get(key, (int, list), default, fits, "an order or a list of different ones, such as [2, 4, 8]")
        return tuple(found) if isinstance(found, list | tuple) else (found,)

    def path(self, key: str, default: Any) -> Path | None:
        """A path, relative to the home."""
        found = self.get(key, str, default, bool, "the path of a file or folder")
        return None if found is None else self._home / Path(found).expanduser()

    def section(self, key: str, *, required: bool = True) -> "Section":
        """The table of a key."""
        table = self.get(key, dict, ... if required else {}, expected=f"a section [{self._child(key)}]")
        return Section(table, self._child(key), self._text, self._home)

    def sections(self, key: str) -> list["Section"]:
        """The tables of a key, at least one."""
        tables = self.get(key, list, ..., bool, f"one section [[{key}]] or more")
        if not all(isinstance(table, dict) for table in tables):
            raise self.error(key, f"expected sections [[{key}]]")
        return [Section(table, key, self._text, self._home, i) for i, table in enumerate(tables)]

    def rest(self) -> dict[str, "Section"]:
        """All tables that are left."""
        names = [key for key, value in self._left.items() if isinstance(value, dict)]
        return {name: self.section(name) for name in names}

    def finish(self) -> None:
        """Raise if keys are left over."""
        if self._left:
            raise self.error(next(iter(self._left)), f"is unknown; there are {', '.join(dict.fromkeys(self._known))}")

    def _child(self, key: str) -> str:
        return f"{self.name}.{key}" if self.name else key


def _line_of(text: str, section: str, key: str, occurrence: int) -> int | None:
    """The line of a key in its section, or that of the section where the key has none; None if it has none either."""
    current, seen, fallback = "", -1, None
    for number, line in enumerate(text.splitlines(), 1):
        header = re.match(r"\s*\[+\s*([^\]]+?)\s*\]+", line)
        if header:
            current = header[1]
            seen += current == section
            if current == section and seen == occurrence:
                fallback = number
            if f"{section}.{key}".strip(".") == current:
                return number
        elif current == section and (seen == occurrence or not section) and re.match(rf"\s*{re.escape(key)}\s*=", line):
            return number
    return fallback
