"""MMEmb-R1, a reconstruction: embeddings that reason only where reasoning pays.

Plain PyTorch. Importing this package is cheap; name the module that you need.
"""

from __future__ import annotations

__version__ = "0.1.0"
