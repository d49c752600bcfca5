"""Where a dataset came from: the source files, written down so that a later run can tell whether they are the same.

An entry holds path, size, time of last change and SHA-256. Comparing is cheap where path, size and time are equal;
only otherwise is the file read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bm3_dgl.data.dataset import file_hash
from bm3_dgl.errors import DataError


def describe_file(path: Path) -> dict[str, Any]:
    """The entry of one source file; reads all of it once. Raises DataError when it cannot be read."""
    try:
        stat = path.stat()
        return {
            "path": str(path.resolve()),
            "bytes": stat.st_size,
            "mtime_ns": stat.st_mtime_ns,
            "sha256": file_hash(path),
        }
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None


def is_same_file(path: Path, entry: dict[str, Any]) -> bool:
    """Whether `path` holds what the entry describes; a moved or copied file does."""
    try:
        stat = path.stat()
        if stat.st_size != entry["bytes"]:
            return False
        if str(path.resolve()) == entry["path"] and stat.st_mtime_ns == entry["mtime_ns"]:
            return True
        return file_hash(path) == entry["sha256"]
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None


def file_difference(files: dict[str, Path], made: dict[str, dict[str, Any]], roles: set[str]) -> str | None:
    """How the files of these roles differ from the entries of those that a dataset was made from; None where not at all."""
    for role in sorted(roles):
        if role not in made:
            return f"{role} from {files[role]}, which it was made without"
        if role not in files:
            return f"no {role}, which it has from {made[role]['path']}"
        if not is_same_file(files[role], made[role]):
            return f"{role} from {files[role]}, which differs from the {made[role]['path']} it was made from"
    return None
