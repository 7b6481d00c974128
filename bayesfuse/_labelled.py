"""xarray's types for annotations, without importing it.

Its own annotations say of an item of a tree that it is an array or a tree, which a type checker cannot take apart.
"""

from typing import Any, TypeAlias

DataArray: TypeAlias = Any
Dataset: TypeAlias = Any
DataTree: TypeAlias = Any
