"""A dataset's repository on the Hugging Face hub at one commit, or a folder with the same files, found and read.

What the hub sends is held against the commit: the size of a file, and its checksum (SHA-256 where it is kept in LFS or
Xet, else git's), which the hub states with the commit's list of files and again with every part that it sends.
"""

import functools
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote

from fsspec.implementations.local import LocalFileSystem
from fsspec.utils import glob_translate
from huggingface_hub import RepoCard, constants, hf_hub_url
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status  # type: ignore[attr-defined]

from ahkio.core.errors import UserError
from ahkio.text.formats import Entry, Retries
from ahkio.text.remote import patiently, stream_of

CHECKSUM = re.compile("[0-9a-f]{40}|[0-9a-f]{64}")


def repository(repo: str, revision: str, mirror: str, retries: Retries) -> "Repository | Mirror":
    return Mirror(repo, revision, mirror) if mirror else Repository(repo, revision, retries)


class Repository:
    """Files as the hub has them."""

    def __init__(self, repo: str, revision: str, retries: Retries) -> None:
        self.repo, self.revision, self.retries = repo, revision, retries

    def glob(self, patterns: Iterable[str]) -> list[str]:
        return sorted({name for pattern in patterns for name in self._matching(pattern)})

    def _matching(self, pattern: str) -> list[str]:
        matches = re.compile(glob_translate(pattern))
        files = tree(constants.ENDPOINT, self.repo, self.revision, _folder_of(pattern), self.retries)
        return [name for name in files if matches.match(name)]

    def entry(self, file: str) -> Entry:
        return entry(constants.ENDPOINT, self.repo, self.revision, file, self.retries)

    def open(self, file: str) -> BinaryIO:
        entry, url = self.entry(file), hf_hub_url(self.repo, file, repo_type="dataset", revision=self.revision)
        fetch = functools.partial(self._fetch, file, url, entry)
        return stream_of(f"{self.repo}/{file}", entry.bytes, fetch, self.retries)

    def _fetch(self, file: str, url: str, entry: Entry, start: int, end: int) -> bytes:
        answer = ask("GET", url, {"Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"})
        told = {"bytes": str(entry.bytes), "version": entry.version} | told_by(answer)
        if told != {"bytes": str(entry.bytes), "version": entry.version}:
            raise UserError(
                f"{self.repo}/{file} is not the file of commit {self.revision}: that has {entry.bytes:,} bytes and the "
                f"checksum {entry.version}, and the hub sends one of {int(told['bytes']):,} bytes and "
                f"{told['version']}; pin another commit, or read a mirror."
            )
        return bytes(answer.content)


class Mirror:
    """Files in a local folder; where `hf download` wrote them, its notes of their commit are held against ours."""

    def __init__(self, repo: str, revision: str, folder: str) -> None:
        self.repo, self.revision, self.folder = repo, revision, Path(folder).resolve()

    def glob(self, patterns: Iterable[str]) -> list[str]:
        system, root = LocalFileSystem(), self.folder.as_posix()
        names = {name for pattern in patterns for name in system.glob(f"{root}/{pattern}") if Path(name).is_file()}
        return sorted(name.removeprefix(root + "/") for name in names)

    def entry(self, file: str) -> Entry:
        stat = (self.folder / file).stat()
        return Entry(stat.st_size, str(stat.st_mtime_ns))

    def open(self, file: str) -> BinaryIO:
        note = self.folder / ".cache" / "huggingface" / "download" / f"{file}.metadata"
        commit = note.read_text().partition("\n")[0].strip() if note.is_file() else self.revision
        if commit != self.revision:
            raise UserError(
                f"{self.folder / file} is of commit {commit}, not {self.revision}; fetch it again: "
                f"hf download {self.repo} --repo-type dataset --revision {self.revision} --local-dir {self.folder}"
            )
        return open(self.folder / file, "rb")


# ---------------------------------------------------------------------------------------------------------------------
# What the hub says


def ask(method: str, url: str, headers: Mapping[str, str] | None = None, **what: Any) -> Any:
    """The hub's answer. Raises its client's errors: nothing is asked again here."""
    timeout, all_headers = constants.HF_HUB_DOWNLOAD_TIMEOUT, {**build_hf_headers(), **(headers or {})}
    answer = get_session().request(method, url, headers=all_headers, timeout=timeout, follow_redirects=True, **what)
    hf_raise_for_status(answer)
    return answer


def told_by(answer: Any) -> dict[str, str]:
    """The size and checksum of the whole file, as far as an answer or the redirects to it tell them."""
    told = {}
    if total := answer.headers.get("Content-Range", "").rpartition("/")[2]:
        told["bytes"] = total
    first = [*answer.history, answer][0].headers  # of the hub; what it redirects to has ETags of its own
    etag = (first.get("X-Linked-Etag") or first.get("ETag") or "").removeprefix("W/").strip('"')
    if CHECKSUM.fullmatch(etag):
        told["version"] = etag
    return told


@functools.cache
def tree(endpoint: str, repo: str, revision: str, folder: str, retries: Retries) -> list[str]:
    """All files below a folder at a commit, asked for once by a process."""
    url, files = f"{endpoint}/api/datasets/{repo}/tree/{revision}/{quote(folder)}?recursive=true", []
    while url:
        page = patiently(repo, functools.partial(ask, "GET", url), retries)
        files += [item["path"] for item in page.json() if item["type"] == "file"]
        url = page.links.get("next", {}).get("url", "")
    return files


@functools.cache
def entry(endpoint: str, repo: str, revision: str, file: str, retries: Retries) -> Entry:
    """The size and checksum of a file at a commit."""
    url = f"{endpoint}/api/datasets/{repo}/paths-info/{revision}"
    items = patiently(repo, functools.partial(ask, "POST", url, data={"paths": [file]}), retries).json()
    if not items:
        raise UserError(f"{repo} has no {file} at commit {revision}; correct data_files or the revision.")
    return Entry(int(items[0]["size"]), (items[0].get("lfs") or {}).get("oid") or items[0]["oid"])


def patterns_of_card(card: bytes, config: str, split: str) -> tuple[str, ...]:
    """The globs that a dataset's card, its README.md, lists for a configuration and a split; none if it lists none."""
    data = RepoCard(card.decode(), ignore_metadata_errors=True).data
    for entry in data.get("configs", []):
        if entry.get("config_name") == config and (found := _paths(entry.get("data_files"), split)):
            return found
    return ()


def _paths(entry: Any, split: str) -> tuple[str, ...]:
    """The globs of `split` in a card's data_files: a glob, a list of them, or a list of {"split", "path"}."""
    if isinstance(entry, str):
        return (entry,) if split == "train" else ()
    if isinstance(entry, list):
        return tuple(path for item in entry for path in _paths(item, split))
    if isinstance(entry, dict) and entry.get("split") == split:
        return _paths(entry.get("path"), "train")
    return ()


def _folder_of(pattern: str) -> str:
    """The folder of a glob that all its matches lie in."""
    fixed = re.split(r"[*?\[]", pattern, maxsplit=1)[0]
    return fixed.rpartition("/")[0]
