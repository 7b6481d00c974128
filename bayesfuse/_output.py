"""An output folder that appears complete or not at all."""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def output_folder(path: str | os.PathLike[str], products: Sequence[str], *, overwrite: bool = False) -> Iterator[Path]:
    """A temporary folder whose content moves to `path` if the body succeeds, and vanishes if it does not.

    Whether `path` can be written is found out on entering, by making the temporary folder where the content will go:
    inside `path` if it exists, else beside it. Folders above it are made if need be, and removed again on failure.

    Parameters
    ----------
    path
        The folder to be.
    products
        Names in `path` that belong to the caller. On success those are replaced by what the body wrote, or removed
        where it wrote nothing of that name. Whatever else is in the folder stays.
    overwrite
        Without it, a folder that is not empty is an error.

    Raises
    ------
    ValueError
        If `path` is a file, or a folder that is not empty while `overwrite` is false.
    OSError
        If the folder cannot be made or written.
    """
    target = Path(path)
    existing = next(folder for folder in (target, *target.absolute().parents) if os.path.lexists(folder))
    if not existing.is_dir():
        raise ValueError(f"cannot write {target}: {existing} exists and is not a folder")
    if not overwrite and target.is_dir() and any(target.iterdir()):
        raise ValueError(f"the output folder {target} exists and is not empty: name another one, or add --overwrite")
    home = target if target.is_dir() else target.parent
    made = [folder for folder in (home, *home.parents) if not folder.exists()]
    temporary = None
    try:
        try:
            home.mkdir(parents=True, exist_ok=True)
            temporary = Path(tempfile.mkdtemp(prefix=f".{target.name or 'bayesfuse'}-", dir=home))
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise
            raise PermissionError(
                f"cannot write {target}: no permission to create files in {existing}; choose another output folder, "
                "such as with -o"
            ) from error
        yield temporary
        # Made for the owner alone; the folder shall have the permissions that others get here.
        os.umask(mask := os.umask(0))
        temporary.chmod(0o777 & ~mask)
        if target.is_dir():
            _move_into(temporary, target, products)
        else:
            os.replace(temporary, target)
        made = []
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
        for folder in made:
            try:
                folder.rmdir()
            except OSError:  # was not made, or holds somebody else's files by now
                break


def _move_into(source: Path, target: Path, products: Sequence[str]) -> None:
    """Replaces the products in the target; each is exchanged by a rename, so that none is ever half-written."""
    names = sorted({*products, *(entry.name for entry in source.iterdir())})
    old = source / ".old"
    old.mkdir()
    for name in names:
        if (target / name).exists() or (target / name).is_symlink():
            os.replace(target / name, old / name)
        if (source / name).exists():
            os.replace(source / name, target / name)
