"""Recipes: the command line, the pipeline of stages, reports and notebooks' loader."""

import os

from experiments.rooms import check_rooms

# Threads of libgomp spin while they wait; on cores that others use too that can cost a factor of
# 20. Set here, before any command imports torch; a short spin loses little on idle cores.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

# Here, before any command imports a room: later the wrong one would fail without a reason.
check_rooms()
