"""Clips: video files and pictures that move. An input's first line is the file's suffix."""

from __future__ import annotations

import io
from collections.abc import Sequence
from random import Random
from typing import ClassVar, final

import av
import numpy as np
from PIL import Image

from datamodules.decode import decode_image
from datamodules.prepare.folder.media import side_members
from tests.fuzzing.kind import Kind
from tests.fuzzing.mutations import mutate_bytes

NUM_FRAMES = 3


@final
class Clips(Kind):
    """A suffix, a line feed, and the file."""

    name: ClassVar[str] = "clips"
    cpu_s: ClassVar[float] = 20.0
    megabytes: ClassVar[int] = 4000
    """Of addresses, among them stacks of decoders' threads until they are collected."""

    def make_seeds(self) -> Sequence[bytes]:
        return [f"{suffix}\n".encode() + data for suffix, data in self._files().items()]

    def mutate(self, data: bytes, random: Random) -> bytes:
        suffix, _, body = data.partition(b"\n")
        others = [seed.partition(b"\n")[2] for seed in self.seeds]
        return suffix + b"\n" + mutate_bytes(body, random, others)

    def marks(self, data: bytes) -> Sequence[str]:
        return ("the_clip",)

    def read(self, data: bytes) -> None:
        suffix, _, body = data.partition(b"\n")
        name = f"the_clip{suffix.decode()}"
        (self.folder / name).write_bytes(body)
        try:
            members = side_members(self.folder, [name], "q", NUM_FRAMES)
        finally:
            (self.folder / name).unlink()
        assert 0 < len(members) <= NUM_FRAMES
        for member, frame in members.items():
            assert decode_image(frame, member).shape[0] == 3

    def _files(self) -> dict[str, bytes]:
        frames = [np.full((16, 24, 3), 10 + 20 * n, dtype=np.uint8) for n in range(10)]
        found = {}
        for suffix, codec in {
            ".mp4": "mpeg4",
            ".mkv": "mpeg4",
            ".avi": "mpeg4",
            ".ts": "mpeg2video",
        }.items():
            path = self.folder / f"made{suffix}"
            with av.open(str(path), "w") as video:
                stream = video.add_stream(codec, rate=25)
                stream.width, stream.height, stream.pix_fmt = 24, 16, "yuv420p"
                for frame in frames:
                    video.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
                video.mux(stream.encode())
            found[suffix] = path.read_bytes()

        images = [Image.fromarray(frame) for frame in frames]
        for suffix in (".gif", ".webp", ".png"):
            buffer = io.BytesIO()
            images[0].save(buffer, suffix[1:], save_all=True, append_images=images[1:])
            found[suffix] = buffer.getvalue()
        return found
