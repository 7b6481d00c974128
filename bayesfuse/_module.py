"""The base of the library's immutable containers: an `equinox.Module` that survives being sent to another process."""

from typing import Any

import equinox as eqx


class Module(eqx.Module):
    """An `equinox.Module` whose copies and unpickled twins are immutable, too, and are freed when they go.

    Equinox lets an object be written to from `__new__` until its `__init__` has ended, and holds a reference that long.
    Neither pickle nor copy calls `__init__`, so that it would be held forever (measured with equinox 0.13.8).
    """

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (type(self), dict(vars(self)))


def _restored(cls: type[Module], fields: dict[str, Any]) -> Module:
    module = object.__new__(cls)
    for name, value in fields.items():
        object.__setattr__(module, name, value)
    return module
