"""What the Hub says about one revision of a model: its commit, its files and its licence."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from lmgraft.checkpoint import cache
from lmgraft.checkpoint.hub_http import (
    BUSY,
    HubFile,
    endpoint,
    give_up_or_wait,
    is_offline,
    network_errors,
    reach,
    refusal,
    retry_after,
)
from lmgraft.errors import SourceError

_T = TypeVar("_T")
_CONVERTER = "SFconvertbot"  # the Hub's own account that proposes safetensors


@dataclass(frozen=True)
class Listing:
    """A revision's commit, file name -> bytes (None where the Hub does not say), and licence."""

    commit: str
    files: dict[str, int | None]
    licence: str | None

    @classmethod
    def from_json(cls, text: bytes) -> Listing | None:
        """As it lies in the cache; None if that is damaged."""
        try:
            content = json.loads(text)
            files = {str(name): None if size is None else int(size) for name, size in content["files"].items()}
            return cls(str(content["commit"]), files, content["licence"])
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None


def request_listing(repo: str, revision: str) -> Listing:
    """Ask the Hub.

    Raises:
        SourceError: If there is no such repository or revision, no access or no network.
    """
    from huggingface_hub import HfApi, constants

    api = HfApi(endpoint=endpoint(), library_name="lmgraft")
    timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
    info = _ask(
        repo, revision, "", lambda: api.model_info(repo, revision=revision, files_metadata=True, timeout=timeout)
    )
    if not info.sha:
        raise SourceError(f"{endpoint()} names no commit for {repo}", "check HF_ENDPOINT")
    files = {sibling.rfilename: sibling.size for sibling in info.siblings or ()}
    return Listing(info.sha, files, _licence(info.card_data))


def request_size(file: HubFile) -> HubFile:
    """`file` with its size, for a server whose listing has none.

    Raises:
        SourceError: As `request_listing`, or if the server does not say.
    """
    from huggingface_hub import get_hf_file_metadata

    metadata = _ask(file.repo, file.commit, file.name, lambda: get_hf_file_metadata(file.url, endpoint=endpoint()))
    if metadata.size is None:
        raise SourceError(f"{endpoint()} does not say how large {file.label} is", "check HF_ENDPOINT")
    return replace(file, size=metadata.size)


def download(file: HubFile) -> Path:
    """The whole file in the Hugging Face cache, fetched if it is not there.

    Raises:
        SourceError: As `request_listing`, or if it must not be fetched because the Hub is switched off.
    """
    from huggingface_hub import hf_hub_download

    if is_offline():
        raise SourceError(
            f"{file.label} is in no cache, and HF_HUB_OFFLINE is set", f"fetch it first (hf download {file.repo})"
        )
    cache.announce(f"{file.label}, whole: a torch file has no ranges to read", file.size)
    options: Any = {"revision": file.commit, "cache_dir": hf_cache(), "endpoint": endpoint()}
    return Path(_ask(file.repo, file.commit, file.name, lambda: hf_hub_download(file.repo, file.name, **options)))


def request_converted(repo: str) -> str | None:
    """The revision that holds the Hub's own conversion of a repository to safetensors; None if there is none.

    Raises:
        SourceError: As `request_listing`.
    """
    from huggingface_hub import HfApi

    api = HfApi(endpoint=endpoint(), library_name="lmgraft")
    opened = _ask(repo, "main", "", lambda: list(api.get_repo_discussions(repo, author=_CONVERTER)))
    proposals = [d for d in opened if d.is_pull_request and d.author == _CONVERTER and d.status == "open"]
    return next((d.git_reference for d in proposals if "safetensors" in d.title.lower()), None)


def hf_cache() -> Path:
    """The Hugging Face cache; its variables are honoured even where they were set after an import."""
    from huggingface_hub import constants

    chosen = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    home = os.environ.get("HF_HOME")
    return Path(chosen or (os.path.join(home, "hub") if home else constants.HF_HUB_CACHE)).expanduser()


def _ask(repo: str, revision: str, file: str, request: Callable[[], _T]) -> _T:
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    reach(repo)
    failures = 0
    while True:
        wait = 0.0
        try:
            return request()
        except HFValidationError as error:
            raise SourceError(f"{repo!r} is no name of a model on the Hub: {error}", "write owner/name") from None
        except HfHubHTTPError as error:  # before the network's: in old versions it is one of them
            response: Any = error.response
            if response is not None and response.status_code not in BUSY:
                code = response.headers.get("X-Error-Code", "")
                raise refusal(response.status_code, code, repo, revision, file) from None
            reason = str(error) if response is None else f"it answered {response.status_code}"
            wait = 0.0 if response is None else retry_after(response.headers)
        except (ValueError, TypeError, KeyError, AttributeError):  # before the network's too: requests' are both
            raise SourceError(
                f"{endpoint()} answered something else than the description of {repo}",
                "check HF_ENDPOINT, and that no proxy or login page stands between",
            ) from None
        except network_errors() as error:
            reason = f"{type(error).__name__}: {error}"
        failures += 1
        give_up_or_wait(failures, wait, f"the Hub could not be asked about {repo}", reason)


def _licence(card: Any) -> str | None:
    """From a model card's metadata; `other` gives way to the name that stands beside it."""
    licence = None if card is None else card.get("license")
    if isinstance(licence, list):
        licence = licence[0] if len(licence) == 1 else ", ".join(map(str, licence))
    if licence == "other":
        licence = card.get("license_name") or licence
    return str(licence) if licence else None


def licence_of_card(text: str) -> str | None:
    """The licence that the head of a README.md names, if it names one plainly."""
    head = re.match(r"---\s*\n(.*?)\n---", text, re.DOTALL)
    fields = dict(re.findall(r"^(license|license_name):[ \t]*['\"]?([\w.+-]+)", head[1], re.MULTILINE)) if head else {}
    return fields.get("license_name", "other") if fields.get("license") == "other" else fields.get("license")
