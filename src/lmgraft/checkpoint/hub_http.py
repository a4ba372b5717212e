"""Ranges of a Hub file over huggingface_hub's own session, and its refusals in words.

huggingface_hub 0.x is built on requests, 1.x on httpx, 2.x on httpx2. Only what these share is
used here, and none is imported, so that `HF_ENDPOINT`, proxies, tokens and a session that the
user configured are honoured whichever it is.
"""

from __future__ import annotations

import importlib
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from lmgraft.errors import SourceError

ATTEMPTS = 5
"""Failures in a row, without a byte between them, before giving up."""
MOST_WAIT = 30.0
"""Seconds: the longest pause, whatever a server's Retry-After says."""
pause: Callable[[float], None] = time.sleep
"""How to wait before another attempt; tests replace it."""

BUSY = (408, 429, 500, 502, 503, 504)
"""Statuses that pass by themselves."""
_PIECE = 1 << 16  # what a broken connection can cost where chunks are read whole


class RangeIgnoredError(SourceError):
    """The server answered a range with the whole file."""


@dataclass(frozen=True)
class HubFile:
    """One file of a repository at one commit."""

    repo: str
    commit: str
    name: str
    size: int

    @property
    def label(self) -> str:
        return f"{self.repo}@{self.commit[:12]}/{self.name}"

    @property
    def url(self) -> str:
        from huggingface_hub import hf_hub_url

        return hf_hub_url(self.repo, self.name, revision=self.commit, endpoint=endpoint())


def endpoint() -> str:
    """The Hub's address; `HF_ENDPOINT` is honoured even where it was set after an import."""
    from huggingface_hub import constants

    return (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")


def is_offline() -> bool:
    """Whether `HF_HUB_OFFLINE` (or `TRANSFORMERS_OFFLINE`) is set now, or was at the first import."""
    from huggingface_hub import constants

    switch = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or ""
    return switch.upper() in ("1", "ON", "YES", "TRUE") or bool(constants.HF_HUB_OFFLINE)


_PATIENCE = 4.0
_answered: set[str] = set()


def reach(repo: str) -> None:
    """Make sure, once a process, that the Hub answers at all: without a network the others try much longer.

    `HF_HUB_ETAG_TIMEOUT` is how many seconds it has to, 4 by default.

    Raises:
        SourceError: If it does not.
    """
    address = endpoint()
    if address in _answered:
        return
    patience = float(os.environ.get("HF_HUB_ETAG_TIMEOUT") or _PATIENCE)
    failures = [f"no answer in {patience:g} s"]

    def knock() -> None:
        from huggingface_hub import get_session
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # documented there

        try:
            get_session().head(address, headers=build_hf_headers(library_name="lmgraft"), timeout=patience)
            failures.clear()
        except network_errors() as error:
            failures[:] = [f"{type(error).__name__}: {error}"]

    # A thread, because looking up a name cannot be told when to end.
    thread = threading.Thread(target=knock, daemon=True)
    thread.start()
    thread.join(patience)
    if failures:
        raise SourceError(
            f"the Hub could not be asked about {repo}: {address} does not answer ({failures[0]})",
            "check the network, proxies and HF_ENDPOINT; without a network give a local folder or file in place of "
            f"{repo} (on a machine that has one: hf download {repo} --local-dir FOLDER)",
        )
    _answered.add(address)


def network_errors() -> tuple[type[Exception], ...]:
    """What the session raises when a connection cannot be made or breaks."""
    from huggingface_hub import get_session

    for base in type(get_session()).__mro__:
        library = base.__module__.partition(".")[0]
        if library in ("httpx", "httpx2"):
            return (OSError, importlib.import_module(library).RequestError)
    return (OSError,)  # those of requests are OSErrors


@dataclass(frozen=True)
class _Answer:
    status: int
    headers: Mapping[str, str]
    chunks: Iterator[bytes]


@contextmanager
def _get(url: str, first: int, count: int) -> Iterator[_Answer]:
    from huggingface_hub import constants, get_session
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # documented there

    headers = build_hf_headers(library_name="lmgraft")
    # Compressed bytes could not be counted, nor taken up in the middle.
    headers |= {"Range": f"bytes={first}-{first + count - 1}", "Accept-Encoding": "identity"}
    timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
    session: Any = get_session()
    if callable(getattr(session, "stream", None)):  # that of requests is a flag
        with session.stream("GET", url, headers=headers, timeout=timeout, follow_redirects=True) as response:
            yield _Answer(response.status_code, response.headers, response.iter_raw())
    else:
        with session.get(url, headers=headers, timeout=timeout, stream=True) as response:
            yield _Answer(response.status_code, response.headers, response.iter_content(_PIECE))


def read_range(file: HubFile, first: int, count: int) -> Iterator[bytes]:
    """The bytes of one range, piece by piece; what breaks is taken up at the last byte that came.

    Raises:
        RangeIgnoredError: If the server answers with the whole file, and that was not asked for.
        SourceError: If the server refuses, answers another range, or stays away too long.
    """
    reach(file.repo)
    done = failures = 0
    whole = first == 0 and count == file.size
    while done < count:
        before, wait = done, 0.0
        try:
            with _get(file.url, first + done, count - done) as answer:
                if answer.status in BUSY:
                    reason, wait = f"it answered {answer.status}", retry_after(answer.headers)
                else:
                    skip = _bytes_to_skip(file, first + done, count - done, answer, whole)
                    reason = "it ended the answer early"
                    for chunk in answer.chunks:
                        wanted = chunk[skip : skip + count - done]
                        skip = max(0, skip - len(chunk))
                        done += len(wanted)
                        if wanted:
                            yield wanted
                        if done == count:
                            return
        except network_errors() as error:
            reason = f"{type(error).__name__}: {error}"
        failures = 1 if done - before >= _PIECE else failures + 1
        give_up_or_wait(failures, wait, f"{file.label} could not be read ({done} of {count} bytes came)", reason)


def give_up_or_wait(failures: int, wait: float, what: str, reason: str) -> None:
    """Pause before the next attempt, longer each time.

    Raises:
        SourceError: If this was the last one.
    """
    if failures >= ATTEMPTS:
        raise SourceError(
            f"{what}: {endpoint()} failed {failures} times, at last {reason}",
            "check the network, proxies and HF_ENDPOINT, and try again: ranges that came whole are kept",
        )
    pause(min(MOST_WAIT, max(wait, 0.25 * 2**failures)))


def retry_after(headers: Mapping[str, str]) -> float:
    """Seconds that a busy server asks for, in Retry-After or as the Hub's rate limit; 0 if it does not say."""
    seconds = headers.get("Retry-After") or headers.get("retry-after") or ""
    if not seconds:
        limit = re.search(r";\s*t=(\d+)", headers.get("RateLimit") or headers.get("ratelimit") or "")
        seconds = limit[1] if limit else ""
    return float(seconds) if seconds.isdigit() and len(seconds) < 6 else 0.0


def _bytes_to_skip(file: HubFile, first: int, count: int, answer: _Answer, whole: bool) -> int:
    """How much of the answer's body lies before `first`, once it is sure to hold the range."""
    if answer.status == 206:
        content_range = answer.headers.get("Content-Range", "")
        match = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", content_range.strip())
        size = file.size if match is None or match[3] == "*" else int(match[3])
        if match is None or int(match[1]) != first or int(match[2]) >= first + count or size != file.size:
            raise SourceError(
                f"{endpoint()} answered {content_range!r} when asked for bytes {first} to {first + count - 1} "
                f"of {file.size} of {file.label}",
                "the server or a proxy between is broken, or the file was replaced: try another network or HF_ENDPOINT",
            )
        return 0
    if answer.status == 200:
        length = answer.headers.get("Content-Length", str(file.size))
        if whole and length == str(file.size):
            return first  # what came before a break comes again
        raise RangeIgnoredError(
            f"{endpoint()} does not serve ranges: it answered with all {length} bytes of {file.label}",
            f"use a mirror or proxy that honours Range, or fetch it once (hf download {file.repo})",
        )
    raise refusal(answer.status, answer.headers.get("X-Error-Code", ""), file.repo, file.commit, file.name)


def refusal(status: int, code: str, repo: str, revision: str, file: str = "") -> SourceError:
    """The Hub's refusal in words. `code` is its X-Error-Code header; `file` may be empty."""
    what = f"{repo}/{file}" if file else repo
    page = f"{endpoint()}/{repo}"
    if code == "GatedRepo" or (status == 403 and code == ""):
        return SourceError(
            f"{what} is gated: the Hub gives it only to accounts that accepted its licence (status {status})",
            f"accept the licence at {page}, then log in with 'hf auth login', or set HF_TOKEN to a token "
            "that may read it",
        )
    if code == "RevisionNotFound":
        again = f"; if it was there, its history was rewritten: lmgraft cache rm {repo} looks again" if file else ""
        return SourceError(
            f"{repo} has no revision {revision!r}", f"choose a branch, tag or commit listed at {page}{again}"
        )
    if code == "EntryNotFound":
        return SourceError(f"{repo} has no file {file!r} at revision {revision!r}", f"see the files at {page}")
    if code == "RepoNotFound" or status in (401, 404):
        return SourceError(
            f"there is no model {repo!r} on the Hub, or it is private (status {status})",
            f"check the name at {page}; for a private model log in with 'hf auth login' or set HF_TOKEN; "
            "for a local file or folder check the path",
        )
    return SourceError(
        f"{endpoint()} refused {what} at revision {revision!r} with status {status} {code}".rstrip(),
        "check HF_ENDPOINT and proxies, and try again later",
    )
