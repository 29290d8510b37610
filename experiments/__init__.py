"""Recipes: the command line, the pipeline of stages, reports and notebooks' loader."""

import os
import sys
from pathlib import Path

from experiments.rooms import check_rooms

# Threads of libgomp spin while they wait; on cores that others use too that can cost a factor of
# 20. Set here, before any command imports torch; a short spin loses little on idle cores.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

# Before any command imports a room: a wrong one would fail later, for no visible reason.
try:
    check_rooms()

    from mmemb.storage.resources import check_system

    check_system()
except (ImportError, OSError) as error:
    # While `python -m` looks for the module of a command, its own name is `-m`.
    if sys.argv and Path(sys.argv[0]).name in ("-m", "mmemb"):
        sys.exit(f"error: {error}")
    raise
