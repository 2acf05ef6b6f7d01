"""Where documents come from: JSON lines, parquet, plain text files, and datasets of the Hugging Face hub."""

import contextlib
import functools
import glob
import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal

from ahkio.core import artifact
from ahkio.core.config import how
from ahkio.core.errors import UserError
from ahkio.core.stage import Facts
from ahkio.text.document import Document
from ahkio.text.formats import Bad, Row, decompressed, json_rows, naming, parquet_rows, text_rows

ALWAYS_ALLOWED = 10  # broken rows of a source that are skipped whatever their share
RESERVED = ("id", "text", "group")


@dataclass
class Tally:
    """What was met while documents were read: rows, and rows that gave no document by reason."""

    read: int = 0
    dropped: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, kw_only=True)
class Source:
    """Files that hold documents.

    `group`: (regular expression, replacement) pairs that turn a document's id, in order, into its group; none: the id.
    `license`: of all its documents. `bad_lines`: the share of rows that may be broken before the source is refused;
    up to ten are always let pass, unless it is 0.
    """

    group: tuple[tuple[str, str], ...] = ()
    license: str = ""
    bad_lines: float = how(0.001)

    def __post_init__(self) -> None:
        for pattern, replacement in self.group:
            try:
                re.compile(pattern).sub(replacement, "")
            except (re.error, IndexError) as error:
                raise UserError(f"The group rule {pattern!r} -> {replacement!r} is no valid rule: {error}.") from error

    @property
    def address(self) -> str:
        """What people call this source."""
        raise NotImplementedError

    def files(self) -> list[str]:
        """The names of its files, in the order of reading. UserError if there are none."""
        raise NotImplementedError

    def rows(self, file: str, stream: BinaryIO) -> Iterator[Row]:
        raise NotImplementedError

    def document(self, row: Mapping[str, Any], place: str) -> Document | Bad:
        """The document that `row` holds; `place` is an id for those that bring none."""
        raise NotImplementedError

    def open_file(self, file: str) -> BinaryIO:
        return open(file, "rb")

    def identity(self) -> Facts:
        return {"sha256": _sha256_of(self.files())}

    def origin(self) -> Facts:
        """Where its text came from, for the manifest."""
        return {"source": self.address, "license": self.license, "files": len(self.files()), **self.identity()}

    def selects(self, row: Mapping[str, Any]) -> bool:
        return True

    def read(self, tally: Tally, files: Sequence[str] | None = None) -> Iterator[Document]:
        """Every document in order, counting into `tally`; of all files, or of some.

        UserError on a damaged file or too many broken rows.
        """
        rows = broken = 0
        for file, number, row in self._all_rows(self.files() if files is None else files):
            made = row if isinstance(row, Bad) else self.document(row, f"{Path(file).name}#{number}")
            rows += 1
            tally.read += 1
            if isinstance(made, Document):
                yield made
                continue
            tally.dropped[made.reason] += 1
            broken += made.broken
            if broken > (max(ALWAYS_ALLOWED, self.bad_lines * rows) if self.bad_lines else 0):
                raise UserError(
                    f"{file}, line {number}: {made.reason.replace('_', ' ')}; {broken} of the first {rows} lines are "
                    f"broken, more than bad_lines={self.bad_lines} lets pass: mend the file, or raise it."
                )

    def _all_rows(self, files: Sequence[str]) -> Iterator[tuple[str, int, Mapping[str, Any] | Bad]]:
        for file in files:
            with naming(file), self.open_file(file) as raw:
                for number, row in self.rows(file, decompressed(raw, file)):
                    if isinstance(row, Bad) or self.selects(row):
                        yield file, number, row

    def _group_of(self, name: str) -> str:
        for pattern, replacement in self.group:
            name = re.sub(pattern, replacement, name)
        return name

    def _fields(self, license: str) -> dict[str, str]:
        return {"license": license} if license else {}


@dataclass(frozen=True)
class TextFiles(Source):
    """Plain text files (a path or a glob), plain or .gz or .zst: a document is a file, or a block between blank lines.

    Its id is the file's path below the fixed part of the glob, with `#` and its number where it is a block.
    """

    path: str
    split: Literal["file", "blank lines"] = "file"

    @property
    def address(self) -> str:
        return self.path

    def files(self) -> list[str]:
        return local_files(self.path)

    def rows(self, file: str, stream: BinaryIO) -> Iterator[Row]:
        name = Path(file).relative_to(_fixed_part(self.path)).as_posix()
        for number, row in text_rows(stream, self.split):
            mark = "" if self.split == "file" else f"#{number}"
            yield number, row if isinstance(row, Bad) else {**row, "id": name + mark}

    def document(self, row: Mapping[str, Any], place: str) -> Document | Bad:
        if not row["text"].strip():
            return Bad("empty_text", broken=False)
        return Document(row["text"], row["id"], self._group_of(row["id"]), self._fields(self.license))


# ---------------------------------------------------------------------------------------------------------------------
# Tables


@dataclass(frozen=True, kw_only=True)
class Table(Source):
    """Rows with columns: which of them make a document.

    `id`: the column of the id; "" numbers the rows of a file. `keep`: columns kept as fields of the document.
    `where`: (column, the values wanted) leaves the other rows out. `license_field`: the column of a row's own licence.
    """

    text: str = "text"
    id: str = "id"
    keep: tuple[str, ...] = ()
    where: tuple[str, tuple[str, ...]] | tuple[()] = ()
    license_field: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if taken := set(self.keep) & set(RESERVED):
            raise UserError(f"{self.address}: keep can't hold {taken.pop()!r}; id, text and group are always kept.")

    def columns(self) -> list[str]:
        wanted = [self.text, self.id, self.license_field, *self.keep, *self.where[:1]]
        return list(dict.fromkeys(column for column in wanted if isinstance(column, str) and column))

    def selects(self, row: Mapping[str, Any]) -> bool:
        return not self.where or row.get(self.where[0]) in self.where[1]

    def document(self, row: Mapping[str, Any], place: str) -> Document | Bad:
        text = row.get(self.text)
        if not isinstance(text, str):
            return Bad("no_text" if text is None else "text_not_a_string")
        if not text.strip():
            return Bad("empty_text", broken=False)
        if self.id and not isinstance(row.get(self.id), str | int):
            return Bad("no_id")
        if lacking := [column for column in self.keep if not isinstance(row.get(column), str | int | float)]:
            return Bad(f"no_{lacking[0]}")
        name = str(row[self.id]) if self.id else place
        kept = {column: str(row[column]) for column in self.keep}
        own = row.get(self.license_field) if self.license_field else None
        return Document(text, name, self._group_of(name), kept | self._fields(str(own or self.license)))


@dataclass(frozen=True)
class JsonLines(Table):
    """Files with one JSON object a line (a path or a glob): plain, .gz or .zst."""

    path: str

    @property
    def address(self) -> str:
        return self.path

    def files(self) -> list[str]:
        return local_files(self.path)

    def rows(self, file: str, stream: BinaryIO) -> Iterator[Row]:
        return json_rows(stream)


@dataclass(frozen=True)
class Parquet(Table):
    """Parquet files (a path or a glob)."""

    path: str

    @property
    def address(self) -> str:
        return self.path

    def files(self) -> list[str]:
        return local_files(self.path)

    def rows(self, file: str, stream: BinaryIO) -> Iterator[Row]:
        return parquet_rows(stream, self.columns(), file)


@dataclass(frozen=True)
class Hub(Table):
    """A dataset of the Hugging Face hub at a pinned commit, streamed from its parquet or JSON-lines files.

    `data_files`: globs inside the repository; without them, those that the dataset's card lists for `config` and
    `split`. `mirror`: a local folder with the repository's files as they are at that commit, to be read instead.
    """

    repo: str
    config: str = "default"
    split: str = "train"
    revision: str = ""
    data_files: tuple[str, ...] = ()
    mirror: str = how("")

    @property
    def address(self) -> str:
        return f"{self.repo} ({self.config}, {self.split})"

    @property
    def pinned(self) -> bool:
        return re.fullmatch("[0-9a-f]{40}", self.revision) is not None

    def identity(self) -> Facts:
        return {"revision": self.revision}

    def origin(self) -> Facts:
        return super().origin() | {"read_from": "mirror" if self.mirror else "hub"}

    def files(self) -> list[str]:
        if not self.pinned:
            raise UserError(f"{self.address}: revision {self.revision!r} pins nothing; give the commit, 40 hex digits.")
        system, root = self._place()
        with _reaching(self.address):
            patterns = self.data_files or self._patterns_of_card()
            found = {file for pattern in patterns for file in system.glob(f"{root}/{pattern}")}
        if not found:
            raise UserError(f"{self.address}: no file of {root} matches {', '.join(patterns)}; correct data_files.")
        return sorted(str(file).removeprefix(root + "/") for file in found)

    def open_file(self, file: str) -> BinaryIO:
        system, root = self._place()
        stream: BinaryIO = system.open(f"{root}/{file}", "rb")
        return stream

    def rows(self, file: str, stream: BinaryIO) -> Iterator[Row]:
        if file.endswith(".parquet"):
            return parquet_rows(stream, self.columns(), f"{self.repo}/{file}")
        if file.removesuffix(".gz").removesuffix(".zst").endswith((".jsonl", ".json", ".ndjson")):
            return json_rows(stream)
        raise UserError(f"{self.address}: {file} is neither parquet nor JSON lines; choose others by data_files.")

    def _place(self) -> tuple[Any, str]:
        """A file system and the repository's folder in it."""
        if self.mirror:
            from fsspec.implementations.local import LocalFileSystem

            return LocalFileSystem(), str(Path(self.mirror).resolve())
        from huggingface_hub import HfFileSystem

        return HfFileSystem(), f"datasets/{self.repo}@{self.revision}"

    def _all_rows(self, files: Sequence[str]) -> Iterator[tuple[str, int, Mapping[str, Any] | Bad]]:
        with _reaching(self.address):
            yield from super()._all_rows(files)

    def _patterns_of_card(self) -> tuple[str, ...]:
        from huggingface_hub import RepoCard

        with self.open_file("README.md") as file:
            card = RepoCard(file.read().decode(), ignore_metadata_errors=True)
        for config in card.data.get("configs", []):
            if config.get("config_name") == self.config and (found := _paths(config.get("data_files"), self.split)):
                return found
        raise UserError(f"{self.address}: its card doesn't say which files these are; name them in data_files.")


@contextlib.contextmanager
def _reaching(address: str) -> Iterator[None]:
    """Turn what the network or the hub refuses into one sentence."""
    from huggingface_hub.errors import HfHubHTTPError

    http_error: type[Any] = HfHubHTTPError.__bases__[0]  # of the HTTP library that this client uses
    try:
        yield
    except (http_error, OSError) as error:
        what = f"{address} can't be read ({' '.join(str(error).split()) or type(error).__name__})"
        raise UserError(f"{what}; check its name, your access and the network, or give a mirror.") from error


def _paths(entry: Any, split: str) -> tuple[str, ...]:
    """The globs of `split` in a card's data_files: a glob, a list of them, or a list of {"split", "path"}."""
    if isinstance(entry, str):
        return (entry,) if split == "train" else ()
    if isinstance(entry, list):
        return tuple(path for item in entry for path in _paths(item, split))
    if isinstance(entry, dict) and entry.get("split") == split:
        return _paths(entry.get("path"), "train")
    return ()


# ---------------------------------------------------------------------------------------------------------------------
# Local files


def local_files(path: str) -> list[str]:
    """The files that a path or a glob names, sorted. UserError if there are none."""
    found = [path] if Path(path).is_file() else sorted(glob.glob(path, recursive=True))
    if files := [file for file in found if Path(file).is_file()]:
        return files
    raise UserError(f"No file matches {path!r} in {Path.cwd()}; correct the path, or fetch the data.")


def _fixed_part(path: str) -> Path:
    """The folder of a glob that all its matches lie in."""
    parent = Path(path).parent
    while glob.has_magic(str(parent)):
        parent = parent.parent
    return parent


def _sha256_of(files: list[str]) -> str:
    """The checksum of one file; of several, that of their list as `sha256sum` prints it."""
    sums = [_sha256(file, Path(file).stat().st_size, Path(file).stat().st_mtime_ns) for file in files]
    if len(sums) == 1:
        return sums[0]
    return hashlib.sha256("".join(f"{s}  {f}\n" for s, f in zip(sums, files, strict=True)).encode()).hexdigest()


@functools.cache
def _sha256(file: str, bytes: int, changed_ns: int) -> str:
    """Kept as long as the file's size and time stay, for a stage's name is asked for often."""
    with naming(file):
        return artifact.sha256(Path(file))
