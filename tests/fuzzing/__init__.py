"""Kinds of inputs for `python -m tests.fuzz`."""

from tests.fuzzing.clips import Clips
from tests.fuzzing.containers import Containers
from tests.fuzzing.drawings import Drawings
from tests.fuzzing.folders import Folders
from tests.fuzzing.json_files import JsonFiles
from tests.fuzzing.kind import Kind
from tests.fuzzing.long_texts import LongTexts
from tests.fuzzing.names import Names
from tests.fuzzing.pictures import Pictures
from tests.fuzzing.servers import Servers
from tests.fuzzing.tables import Tables
from tests.fuzzing.tars import Tars
from tests.fuzzing.texts import Texts

KINDS: dict[str, type[Kind]] = {
    kind.name: kind
    for kind in (
        JsonFiles,
        Names,
        Texts,
        LongTexts,
        Servers,
        Pictures,
        Drawings,
        Clips,
        Tables,
        Tars,
        Containers,
        Folders,
    )
}
