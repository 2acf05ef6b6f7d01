"""A server on this machine that answers as the hub and as a plain file server do, and fails where it is told to."""

import hashlib
import json
import re
from collections import defaultdict
from contextlib import contextmanager
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import parse_qs, urlsplit

PAGE = 2  # files in a page of a listing


class FakeHub:
    """`files`: the content of a repository, which is also at URL/plain/NAME.

    `faults`: by a part of the request's path, what the next requests of it meet, the last again and again if it is
    "always": a status, ("status", seconds of Retry-After), "cut" (half of the answer) or None.
    `sent`: what is sent in place of a file of the listing.
    """

    def __init__(self, files):
        self.files, self.sent = files, {}
        self.faults, self.asked = defaultdict(list), []
        self.url = ""

    def fault(self, path):
        for part, planned in self.faults.items():
            if part in path and planned:
                return planned[0][1] if isinstance(planned[0], tuple) and planned[0][0] == "always" else planned.pop(0)
        return None

    def bytes_sent(self, part):
        return sum(size for path, size in self.asked if part in path)


@cache
def item(name, content):
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    found = {"type": "file", "path": name, "size": len(content), "oid": blob}
    if is_lfs(name):
        found["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
    return found


def is_lfs(name):
    return name.endswith((".parquet", ".gz", ".zst"))


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize, disable_nagle_algorithm = 1 << 16, True

    def log_message(self, *_):
        pass

    def do_POST(self):
        asked = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())["paths"]
        if not self.failed():
            files = self.server.hub.files
            self.answer(json.dumps([item(name, files[name]) for name in asked if name in files]).encode())

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        hub, url = self.server.hub, urlsplit(self.path)
        if self.failed():
            return
        if found := re.fullmatch(r"/api/datasets/[^/]+/[^/]+/tree/[0-9a-f]+/(.*)", url.path):
            self.listing(found[1], int(parse_qs(url.query).get("from", ["0"])[0]))
        elif found := re.fullmatch(r"/datasets/[^/]+/[^/]+/resolve/[0-9a-f]+/(.*)", url.path):
            self.resolve(found[1])
        elif (name := url.path.partition("/plain/")[2]) in hub.files:
            etag = item(name, hub.files[name])["oid"]
            self.answer(hub.files[name], {"ETag": f'"{etag}"', "Accept-Ranges": "bytes"})
        elif name := url.path.partition("/cdn/")[2]:
            self.answer(hub.sent.get(name, hub.files[name]), {"ETag": '"of-the-cdn"'})
        elif url.path == "/plain/":
            self.answer("".join(f'<a href="{hub.url}/plain/{name}">{name}</a>' for name in hub.files).encode())
        else:
            self.answer(b"", status=404)

    def listing(self, folder, start):
        files = self.server.hub.files
        names = sorted(name for name in files if name.startswith(folder))
        more = f'<{self.server.hub.url}{self.path.partition("?")[0]}?recursive=true&from={start + PAGE}>; rel="next"'
        page = [item(name, files[name]) for name in names[start : start + PAGE]]
        self.answer(json.dumps(page).encode(), {"Link": more} if start + PAGE < len(names) else {})

    def resolve(self, name):
        hub = self.server.hub
        if name not in hub.files:
            self.answer(b"", {"X-Error-Code": "EntryNotFound"}, 404)
            return
        sent = item(name, hub.sent.get(name, hub.files[name]))
        if is_lfs(name):
            linked = {"X-Linked-Etag": f'"{sent["lfs"]["oid"]}"', "X-Linked-Size": str(sent["size"])}
            self.answer(b"", {"Location": f"{hub.url}/cdn/{name}", **linked}, 302)
        else:
            self.answer(hub.sent.get(name, hub.files[name]), {"ETag": f'"{sent["oid"]}"'})

    def failed(self):
        """Send a planned status; whether one was planned."""
        fault = self.server.hub.fault(self.path)
        self.cut = fault == "cut"
        if fault is None or self.cut:
            return False
        status, wait = fault if isinstance(fault, tuple) else (fault, None)
        self.answer(b"", {"Retry-After": str(wait)} if wait is not None else {}, status)
        return True

    def answer(self, content, headers=None, status=200):
        headers, total = dict(headers or {}), len(content)
        span = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if span and status == 200:
            begin, end = int(span[1]), min(int(span[2]) + 1, total)
            content, status = content[begin:end], 206
            headers["Content-Range"] = f"bytes {begin}-{end - 1}/{total}"
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        sent = content[: len(content) // 2] if self.cut else content
        if self.command != "HEAD":
            self.wfile.write(sent)
        self.server.hub.asked.append((self.path, len(sent)))
        self.close_connection = self.close_connection or self.cut


@contextmanager
def serving(files):
    hub = FakeHub(files)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.hub, server.daemon_threads = hub, True
        hub.url = f"http://127.0.0.1:{server.server_port}"
        Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield hub
        server.shutdown()


def files_below(folder: Path):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
