"""Names from data that become names of files, and lines."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import ClassVar, final

from datamodules.lines import split_lines
from mmemb.benchmarks.score_files import SCORE, task_file
from mmemb.records.file_names import check_apart, check_plain, file_name, name_of_file
from tests.fuzzing.kind import Kind
from tests.fuzzing.mutations import mutate_bytes, mutate_text


@final
class Names(Kind):
    """Names, one a line."""

    name: ClassVar[str] = "names"

    def make_seeds(self) -> Sequence[bytes]:
        return [b"ViDoRe_docvqa\nImageNet-1K\n", b"docs/x\ncaf\xc3\xa9\n50%\n", b"a\nA\n", b"%2E"]

    def mutate(self, data: bytes, random: Random) -> bytes:
        if random.random() < 0.3:
            return mutate_bytes(data, random, self.seeds)
        text = mutate_text(data.decode(errors="surrogateescape"), random)
        return text.encode(errors="surrogatepass")

    def marks(self, data: bytes) -> Sequence[str]:
        return ("name", "NAME")

    def read(self, data: bytes) -> None:
        lines = split_lines(data)
        without_mark = data.removeprefix(b"\xef\xbb\xbf")
        assert len(lines) == without_mark.count(b"\n") + (
            not without_mark.endswith((b"\n",)) and bool(without_mark)
        )
        names = [line.decode(errors="surrogatepass") for line in lines if _is_text(line)]

        refused = []
        files = {}
        for name in dict.fromkeys(names):
            try:
                files[name] = file_name(name)
            except ValueError as error:
                refused.append(error)
        assert len(set(files.values())) == len(files), "two names are one file"
        for name, file in files.items():
            self._check(name, file)
        check_apart(files, "NAME")
        assert len({file.lower() for file in files.values()}) == len(files)
        for name in names:
            check_plain(name, "NAME")
            assert Path(os.path.normpath(self.folder / name)).parent == self.folder
        if refused:
            raise refused[0]

    def _check(self, name: str, file: str) -> None:
        assert name_of_file(file) == name, "another name comes back"
        path = task_file(self.folder, name, SCORE)
        assert os.path.normpath(path) == str(path)
        assert path.parent == self.folder, "another folder"
        path.write_bytes(b"")  # the file system takes it
        path.unlink()


def _is_text(line: bytes) -> bool:
    try:
        line.decode(errors="surrogatepass")
    except UnicodeDecodeError:
        return False
    return True
