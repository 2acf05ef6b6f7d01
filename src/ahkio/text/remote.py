"""Files of the network: found, read by parts, asked for again where a server fails, refused where they changed.

fsspec finds and fetches (`s3://`, `gs://`, `https://`, ...). Its HTTP never asks again, and the hub's client waits as
long as it is told to and does not see that an answer is too short; so that is decided here, for all alike.
"""

import contextlib
import functools
import hashlib
import io
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from time import sleep
from typing import Any, BinaryIO, TypeVar, cast

from fsspec.core import url_to_fs
from fsspec.spec import AbstractBufferedFile

from ahkio.core.errors import UserError
from ahkio.text.formats import Entry, Retries, changed

BLOCK_BYTES = 1 << 23  # fetched at once
BLOCKS = 4  # of a file kept, for columns of parquet are read by turns
BUSY = (408, 425, 429)  # these and 5xx pass; any other status is an answer
CHECKSUMS = ("ETag", "etag", "md5Hash", "blob_id", "Content-MD5", "Digest")  # as fsspec's systems call them
TIMES = ("Last-Modified", "LastModified", "mtime", "created")  # where there is none; listings write them otherwise

Fetch = Callable[[int, int], bytes]
Result = TypeVar("Result")


# ---------------------------------------------------------------------------------------------------------------------
# Asking again


def patiently(what: str, work: Callable[[], Result], retries: Retries) -> Result:
    """What `work` gives, asked for again while the error is one that passes. UserError that names `what`, in the end;
    FileNotFoundError as it comes."""
    with reaching(what):
        for tried in range(1, retries.tries):
            try:
                return work()
            except network_errors() as error:
                if not passes(error):
                    raise
                sleep(pause(error, tried, retries))
        return work()


@contextlib.contextmanager
def reaching(what: str) -> Iterator[None]:
    """Turn what the network or a server refuses into one sentence."""
    try:
        yield
    except network_errors() as error:
        if isinstance(error, FileNotFoundError) and not passes(error):
            raise
        raise UserError(
            f"{what} can't be read ({said(error)}); check its name, your access and the network, or read a copy of "
            "it. What is made is kept, and the same command goes on."
        ) from error


def network_errors() -> tuple[type[BaseException], ...]:
    """What the libraries raise that are in use here; those of HTTP clients are no OSError."""
    found: list[type[BaseException]] = [OSError]
    for module, name in (("aiohttp", "ClientError"), ("httpx", "HTTPError"), ("httpx2", "HTTPError")):
        if module in sys.modules:
            found.append(getattr(sys.modules[module], name))
    return tuple(found)


def passes(error: BaseException) -> bool:
    if status := status_of(error):
        return status in BUSY or status >= 500
    return not isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError)


def status_of(error: BaseException) -> int:
    """The HTTP status behind an error; 0 where there is none."""
    answer = answer_of(error)
    return int(getattr(answer, "status_code", 0) or getattr(answer, "status", 0))


def answer_of(error: BaseException) -> Any:
    """What holds the status and headers of the server's answer: the error, its response, or those of its cause."""
    inner: BaseException | None = error
    while inner is not None:
        for answer in (getattr(inner, "response", None), inner):
            if getattr(answer, "status_code", None) or getattr(answer, "status", None):
                return answer
        inner = inner.__cause__
    return None


def pause(error: BaseException, tried: int, retries: Retries) -> float:
    """Seconds to wait after so many tries."""
    asked = asked_for(getattr(answer_of(error), "headers", None) or {})
    return min(retries.longest, max(asked, retries.first * 2.0 ** (tried - 1)))


def asked_for(headers: Mapping[str, str]) -> float:
    """Seconds that a server asks to wait: by Retry-After, or as the hub says when a limit on its rate ends."""
    waits = (headers.get("Retry-After", ""), headers.get("RateLimit", ""))
    found = re.fullmatch(r"\d+", waits[0].strip()) or re.search(r"(?<=r=0;t=)\d+", waits[1].replace(" ", ""))
    return float(found.group()) if found else 0.0


def said(error: BaseException) -> str:
    if status := status_of(error):
        return f"the server answers with status {status}"
    return " ".join(str(error).split()) or type(error).__name__


# ---------------------------------------------------------------------------------------------------------------------
# Reading


class RemoteFile(AbstractBufferedFile):
    """A file of `size` bytes that `fetch` gets from one byte to another; what fails is fetched again."""

    def __init__(self, name: str, size: int, fetch: Fetch, retries: Retries) -> None:
        self.fetch, self.retries = fetch, retries
        options = {"maxblocks": BLOCKS}
        super().__init__(None, name, "rb", BLOCK_BYTES, cache_type="blockcache", cache_options=options, size=size)

    def _fetch_range(self, start: int, end: int) -> bytes:
        end = min(end, self.size)
        return patiently(self.path, functools.partial(self._whole, start, end), self.retries)

    def _whole(self, start: int, end: int) -> bytes:
        data = self.fetch(start, end)
        if len(data) < end - start:
            raise ConnectionError(f"it broke off after byte {start + len(data):,} of {self.size:,}")
        if len(data) > end - start:
            raise UserError(f"{self.path}: its server sends no parts of files; fetch it, and read it here.")
        return data


def stream_of(name: str, size: int, fetch: Fetch, retries: Retries) -> BinaryIO:
    return cast(BinaryIO, io.BufferedReader(cast(Any, RemoteFile(name, size, fetch, retries)), 1 << 20))


# ---------------------------------------------------------------------------------------------------------------------
# Files by URL


_known: dict[str, Entry | None] = {}  # the state of files, None of folders, when this process first asked


@functools.cache
def found(path: str, retries: Retries) -> tuple[str, ...]:
    """The URLs of the files that a URL or a glob names, sorted; looked up once by a process. UserError if none."""
    system, inner = place(path)
    if not re.search(r"[*\[]" if path.startswith("http") else r"[*?\[]", path):
        return (path,) if state(path, retries) else ()
    with naming_lost(path):
        listed = patiently(path, lambda: system.glob(inner, detail=True), retries)
    infos = {system.unstrip_protocol(name): info for name, info in listed.items()}
    _known.update({url: entry_of(url, info) for url, info in infos.items() if any(map(info.get, CHECKSUMS))})
    if urls := sorted(url for url in infos if entry(url, retries)):
        return tuple(urls)
    raise UserError(f"No file matches {path!r}; correct it, or check your access.")


def entry(url: str, retries: Retries) -> Entry | None:
    if url not in _known:
        _known[url] = entry_now(url, retries)
    return _known[url]


def entry_now(url: str, retries: Retries) -> Entry | None:
    system, inner = place(url)
    system.invalidate_cache()
    with naming_lost(url):
        return entry_of(url, patiently(url, lambda: system.info(inner), retries))


def entry_of(url: str, info: Mapping[str, Any]) -> Entry | None:
    """What fsspec knows of a file; None for a folder."""
    if info["type"] != "file":
        return None
    if info.get("size") is None or info.get("partial") is False:
        raise UserError(f"{url}: its server tells no size or sends no parts of files; fetch it, and read it here.")
    version = next((str(info[key]) for key in (*CHECKSUMS, *TIMES) if info.get(key)), "")
    return Entry(int(info["size"]), version.removeprefix("W/").strip('"'))


def state(url: str, retries: Retries) -> Entry:
    known = entry(url, retries)
    if known is None:
        raise UserError(f"{url} is no file; correct the path.")
    return known


def open_url(url: str, retries: Retries) -> BinaryIO:
    """The file, read by parts. UserError where it is not what it was when this process first asked."""
    confirm(url, retries)
    system, inner = place(url)
    return stream_of(url, state(url, retries).bytes, lambda start, end: system.cat_file(inner, start, end), retries)


def confirm(url: str, retries: Retries) -> None:
    """UserError where a file has changed since this process first asked for its state."""
    if entry_now(url, retries) != state(url, retries):
        raise UserError(changed(url))


def place(url: str) -> tuple[Any, str]:
    """The file system that a URL names, and the path in it."""
    try:
        return cast("tuple[Any, str]", url_to_fs(url))
    except (ImportError, ValueError) as error:
        raise UserError(f"{url} can't be read here: {' '.join(str(error).split())}.") from error


@contextlib.contextmanager
def naming_lost(url: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise UserError(f"There is no {url}, or not any more; correct it, or check your access.") from error


def checksum(files: Iterable[tuple[str, Entry]]) -> str:
    """A hash of names, sizes and versions, which stands for content that is too much to read."""
    lines = (f"{entry.version}  {entry.bytes}  {name}\n" for name, entry in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()
