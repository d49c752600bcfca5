"""The source files of a dataset, fetched into data.source from the server that the config names.

In: the sections `download` and `data`. Out: the files under their own names, each whole and, where a checksum is given, of the
content it names. A file that is there already is not fetched again: with all of them there, no server is asked.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from urllib.parse import quote, urlsplit

from bm3_dgl.config.schema import DataConfig, DataFormat, DownloadConfig
from bm3_dgl.data.dataset import file_hash
from bm3_dgl.data.transfer import Patience, fetch
from bm3_dgl.errors import ConfigError, DataError
from bm3_dgl.log import logger

# Below the address of a release, where its publishers keep a category's interactions, item texts and image features.
_CATEGORY_FILES = {
    DataFormat.amazon2014: [
        "categoryFiles/reviews_{}_5.json.gz",
        "categoryFiles/meta_{}.json.gz",
        "image_features/categoryFiles/image_features_{}.b",
    ],
    DataFormat.amazon2018: ["categoryFilesSmall/{}_5.json.gz", "metaFiles2/meta_{}.json.gz"],
    DataFormat.amazon2023: ["raw/review_categories/{}.jsonl.gz", "raw/meta_categories/meta_{}.jsonl.gz"],
}
_SUM = re.compile(r"([0-9a-fA-F]{64}) [ *](.+)")  # a line of sha256sum
_NETLOC = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^][@:%]+)(?::([0-9]*))?")  # a host, or [an IPv6 address], and a port
_ASCII_HOST = re.compile(r"[A-Za-z0-9._-]+")
_LARGEST_PORT = 65535
_KEPT_IN_PATH = "/%:@!$&'()*+,;=~"  # what a path may hold as it is; % because it may be quoted already


def download(config: DownloadConfig, data: DataConfig) -> list[Path]:
    """Fetch those files that are not in `data.source` yet; the paths of all of them.

    The files are `config.files`, or where that is empty those of Amazon's `data.category` in the release `data.format`.
    Raises ConfigError for settings that name no file or no server, DataError for what cannot be had (see `fetch`) and
    for a file that is there with another checksum.
    """
    if not data.source:
        raise ConfigError("data.source is empty: it names the directory that the files are fetched to")
    base = _base_url(config.url) if config.url else ""
    names = config.files or _category_files(data)
    targets = _targets(names, Path(data.source), key="download.files" if config.files else "data.category")
    sums = _read_sums(Path(config.checksums), names) if config.checksums else {}
    missing = {name: target for name, target in targets.items() if not _is_there(target, sums.get(name))}
    if missing:
        _fetch_all(base, config, missing, sums)
    logger.info("%s: %d files are there, %d of them fetched now", data.source, len(targets), len(missing))
    return list(targets.values())


def _category_files(data: DataConfig) -> list[str]:
    if data.format not in _CATEGORY_FILES or not data.category:
        raise ConfigError(
            "download.files is empty: name the files, or one of Amazon's categories with data.category=Baby and its release "
            f"with data.format={'|'.join(release.name for release in _CATEGORY_FILES)}"
        )
    return [name.format(data.category) for name in _CATEGORY_FILES[data.format]]


def _base_url(url: str) -> str:
    """download.url as a request takes it: in ASCII, without a slash at its end.

    Raises ConfigError, which shows nothing of a url that may hold a password, and no query.
    """
    shown = "..." if "@" in url else re.split("[?#]", url)[0]
    if any(sign.isspace() or not sign.isprintable() for sign in url):
        raise ConfigError(f"download.url={shown!r}: has a blank or an unprintable sign; remove it, or write %20 for a blank")
    try:
        scheme, netloc, path, _, _ = urlsplit(url)
        if "@" in netloc:
            raise ConfigError("download.url: has a user or a password before its host; choose a server that asks for none")
        if scheme not in ("http", "https") or not netloc:
            raise ConfigError(f"download.url={shown}: expected an http:// or https:// address of a directory")
        netloc = _ascii_netloc(netloc)
    except ConfigError:
        raise
    except ValueError:
        raise ConfigError(
            f"download.url={shown}: has no valid host and port; expected http://HOST/DIR or http://HOST:PORT/DIR with a port "
            f"of 1 to {_LARGEST_PORT} and at most 63 letters between two dots"
        ) from None
    if "?" in url or "#" in url:
        raise ConfigError(f"download.url={shown}: has a ?query or a #fragment, behind which no file name can stand; remove it")
    return f"{scheme}://{netloc}{quote(path.rstrip('/'), safe=_KEPT_IN_PATH)}"


def _ascii_netloc(netloc: str) -> str:
    """HOST or HOST:PORT as a request takes it, a name in other letters by its IDNA spelling. Raises ValueError."""
    match = _NETLOC.fullmatch(netloc)
    if match is None or not 0 < int(match[2] or 80) <= _LARGEST_PORT:
        raise ValueError(netloc)
    host = match[1]
    if not host.startswith("["):
        host = host.encode("idna").decode("ascii")
        if not _ASCII_HOST.fullmatch(host):
            raise ValueError(netloc)
    return f"{host}:{match[2]}" if match[2] else host


def _fetch_all(base: str, config: DownloadConfig, missing: dict[str, Path], sums: dict[str, str]) -> None:
    if not base:
        raise ConfigError(f"download.url=: expected an http:// or https:// address, to fetch {', '.join(missing)} from")
    patience = Patience(config.attempts, config.wait_seconds, config.silence_seconds)
    for name, target in missing.items():
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"{target.parent}: cannot be made ({error.strerror}); choose another data.source") from None
        fetch(f"{base}/{quote(name)}", target, patience=patience, sha256=sums.get(name))


def _targets(names: Sequence[str], source: Path, *, key: str) -> dict[str, Path]:
    """Name below download.url -> file in `source`, which has no folders. Raises ConfigError for a name that leads away."""
    targets: dict[str, Path] = {}
    for name in names:
        steps = name.split("/")
        if any(not step or step.startswith(".") or not step.isprintable() for step in steps):
            raise ConfigError(f"{key}: {name!r} is no file name; give it as it stands below download.url")
        if "?" in name or "#" in name:
            raise ConfigError(f"{key}: {name!r} has a ?query or a #fragment; give the file's name alone")
        target = source / steps[-1]
        if target in targets.values():
            raise ConfigError(f"{key}: two of them are called {steps[-1]!r}; they would be one file in data.source")
        targets[name] = target
    return targets


def _is_there(target: Path, sha256: str | None) -> bool:
    """Whether a file is there. Raises DataError where it is another one than its checksum says."""
    try:
        if not target.exists():
            return False
        if not target.is_file():
            raise DataError(f"{target}: is no file; remove it or choose another data.source")
        found = sha256 if sha256 is None else file_hash(target)
    except OSError as error:
        raise DataError(f"{target}: cannot be read ({error.strerror}); remove it or choose another data.source") from None
    if found != sha256:
        raise DataError(f"{target}: has SHA-256 {found}, download.checksums says {sha256}; remove the file to fetch it again")
    return True


def _read_sums(path: Path, names: Sequence[str]) -> dict[str, str]:
    """Name -> checksum in lower case, from lines as sha256sum writes them. Raises DataError where a name has none.

    A line is of a name that it gives with the same folders, else of one that it gives with others or without.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or 'not UTF-8'})") from None
    sums: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        match = _SUM.fullmatch(line)
        if match is None and line.strip():
            raise DataError(f"{path}, line {number}: {line[:80]!r} is no line of sha256sum (64 digits, two blanks, a name)")
        if match is not None:
            sums[str(PurePosixPath(match[2]))] = match[1].lower()
    return {name: _sum_of(name, sums, path) for name in names}


def _sum_of(name: str, sums: dict[str, str], path: Path) -> str:
    if name in sums:
        return sums[name]
    found = {value for other, value in sums.items() if PurePosixPath(other).name == PurePosixPath(name).name}
    if not found:
        raise DataError(f"{path}: no checksum of {name!r}; add its line, or leave download.checksums empty")
    if len(found) > 1:
        raise DataError(f"{path}: two checksums of {name!r}, of files in other folders; give one line with that very name")
    return found.pop()
