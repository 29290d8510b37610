"""Callbacks: a plain object inside, hooks outside; they read step outputs, never the model."""

from callbacks.benchmark_scores import BenchmarkScores
from callbacks.checkpoint_io import WholeCheckpointIO
from callbacks.fit_end import StopAtStep
from callbacks.hparams import HParams
from callbacks.interruption import Interruption
from callbacks.invocation import InvocationRatio
from callbacks.recall import RecallAtK
from callbacks.run_record import RunRecord
from callbacks.selected_weights import SelectedWeights
from callbacks.sidecar_writer import SidecarWriter
from callbacks.training_health import TrainingHealth

__all__ = [
    "BenchmarkScores",
    "HParams",
    "Interruption",
    "InvocationRatio",
    "RecallAtK",
    "RunRecord",
    "SelectedWeights",
    "SidecarWriter",
    "StopAtStep",
    "TrainingHealth",
    "WholeCheckpointIO",
]
