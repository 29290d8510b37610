"""Models of a hub: fetched into its cache, or published, by huggingface_hub.

Its environment variables (endpoint, offline mode, token, cache, proxies) hold as it documents them.
It repeats requests for half a minute where there is no network, so the hub is asked once first.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, final

from mmemb.records.text import quote

SECONDS = 5
"""Longest wait for the first byte of an answer of a hub, and for each further piece of it."""

WHOLE_SECONDS = 10
"""Longest wait for the whole first answer: a hub may send it in endless small pieces."""


@final
class HubError(FileNotFoundError):
    """A model that no hub gives; the message needs no addition."""


_NO_HUB = (ValueError, KeyError, TypeError, AttributeError, AssertionError)
"""What huggingface_hub raises for a reply that is none of a hub, such as a page for signing in."""

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def is_hub_id(name: str | Path) -> bool:
    """Tells `org/name` of a hub from a path: what begins with a folder that exists is a path, and
    so is a `Path`.

    >>> is_hub_id("org/name"), is_hub_id("./org/name"), is_hub_id("a/b/c"), is_hub_id("name")
    (True, False, False, False)
    >>> is_hub_id(Path("org/name"))
    False
    """
    if isinstance(name, Path):
        return False
    return _ID.fullmatch(name) is not None and not Path(name.partition("/")[0]).exists()


def hub_answers(name: str, revision: str | None = None, token: str | bool | None = None) -> bool:
    """Tells whether the hub answers within `WHOLE_SECONDS`; False also in offline mode.

    Args:
        name: hub id, with a `/` or (of old models) without.
        revision: branch, tag or commit; None = the main branch.
        token: see `fetch_model`.

    Raises:
        HubError: the hub answers that it has no such model or revision, or refuses it.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        HTTPError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if constants.HF_HUB_OFFLINE:
        return False

    hub = constants.ENDPOINT
    try:
        within(
            WHOLE_SECONDS,
            lambda: HfApi().model_info(name, revision=revision, timeout=SECONDS, token=token),
        )
    except HFValidationError as error:
        raise HubError(f"{name!r} is no id of a hub: {quote(error)}") from None
    except GatedRepoError:
        raise HubError(
            f"{hub} gives {name} only to accounts that its owner lets in: ask there, and set "
            "HF_TOKEN."
        ) from None
    except RepositoryNotFoundError:
        raise HubError(
            f"{hub} has no model {name}, or it is private: correct the name, or set HF_TOKEN."
        ) from None
    except RevisionNotFoundError:
        raise HubError(f"{hub} has no revision {revision!r} of {name}.") from None
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        # Below 500 the hub works, and refuses this model.
        if status is not None and status < 500:
            raise HubError(f"{hub} refuses {name} (status {status}): {quote(error)}") from None
        return False
    except (HTTPError, OSError, *_NO_HUB):  # no network, no such host, or no answer of a hub
        return False
    return True


def within(seconds: float, ask: Callable[[], object]) -> None:
    """Calls a function that may wait for ever; what it raises is raised here.

    Raises:
        TimeoutError: it has not returned in time; it is left alone, and ends with the process.
    """
    raised: list[BaseException] = []

    def run() -> None:
        try:
            ask()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)

    if thread.is_alive():
        raise TimeoutError(f"no whole answer within {seconds:g} s")
    if raised:
        raise raised[0]


def model_folder(
    name: str | Path,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> Path:
    """Returns the folder that a name means: the name itself, or the fetched one of a hub id.

    Args:
        name: folder, or `org/name` on the hub.
        revision: see `fetch_model`, as all that follow.
        token: of the account.
        cache_dir: of huggingface_hub.
        local_files_only: True if the network may not be asked.

    Raises:
        HubError: see `fetch_model`.
    """
    if not is_hub_id(name):
        return Path(name)
    return fetch_model(
        str(name),
        revision=revision,
        token=token,
        cache_dir=cache_dir,
        local_files_only=local_files_only,
    )


def fetch_model(
    name: str,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> Path:
    """Returns the folder of a model of the hub, from the cache of huggingface_hub.

    Args:
        name: `org/name`.
        revision: branch, tag or commit; None = the main branch.
        token: of the account; None = the one that huggingface_hub finds.
        cache_dir: None = its own cache.
        local_files_only: True if the network may not be asked.

    Raises:
        HubError: the hub does not answer, and the cache lacks the model; or see `hub_answers`.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HTTPError

    is_online = not local_files_only and hub_answers(name, revision, token)
    try:
        folder = snapshot_download(
            name,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=not is_online,
            etag_timeout=SECONDS,
        )
    # The network may fail after the first answer.
    except (HTTPError, OSError, *_NO_HUB) as error:
        raise HubError(missing_model_message(name, local_files_only, error)) from None
    return Path(folder)


def missing_model_message(
    name: str, local_files_only: bool = False, error: Exception | None = None
) -> str:
    """Returns the one sentence about a model that is neither reached nor in the cache."""
    from huggingface_hub import constants
    from huggingface_hub.errors import LocalEntryNotFoundError

    if error is not None and not isinstance(error, LocalEntryNotFoundError):
        return f"{name} could not be fetched from {constants.ENDPOINT} ({quote(error, 200)})."
    if local_files_only or constants.HF_HUB_OFFLINE:
        return (
            f"{name} is neither a folder here nor in the cache of huggingface_hub, and the network "
            "may not be asked (HF_HUB_OFFLINE, or local_files_only): fetch it once with a network."
        )
    return (
        f"{name} is neither a folder here nor in the cache of huggingface_hub, and "
        f"{constants.ENDPOINT} does not answer: check the name, the network and HF_ENDPOINT, or "
        "name a folder."
    )


def publish(
    folder: Path,
    name: str,
    *,
    commit_message: str,
    private: bool | None = None,
    token: str | None = None,
    branch: str | None = None,
    create_pr: bool | None = None,
    delete_patterns: list[str],
) -> str:
    """Uploads a folder as one commit of a model of the hub, which is made if there is none.

    Args:
        folder: what is uploaded.
        name: `org/name`.
        commit_message: of the commit.
        private: whether a model that is made here is private; None = as the account has it.
        token: of the account.
        branch: that is committed to, made if there is none; None = the main branch.
        create_pr: True for a pull request.
        delete_patterns: of files that belong to a release: older ones that the folder lacks are
            removed in the same commit.

    Returns:
        The address of the commit.

    Raises:
        ValueError: the hub does not answer, or refuses.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HTTPError

    hub: Any = HfApi(token=token)
    try:
        repo = hub.create_repo(name, private=private, exist_ok=True)
        if branch is not None:
            hub.create_branch(repo_id=repo.repo_id, branch=branch, exist_ok=True)
        commit = hub.upload_folder(
            repo_id=repo.repo_id,
            folder_path=folder,
            commit_message=commit_message,
            revision=branch,
            create_pr=create_pr,
            delete_patterns=delete_patterns,
        )
    except (HTTPError, OSError, ValueError) as error:
        raise ValueError(
            f"{name} could not be published at {constants.ENDPOINT} ({quote(error, 300)}): check "
            "the name, the network and HF_TOKEN."
        ) from None
    return str(commit.commit_url)
