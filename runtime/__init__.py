"""Serve exported controllers with ONNX Runtime. No torch is imported here, and ONNX only when a file is read."""

from .runtime import WAYS, Decision, Runtime
from .table import Latency

__all__ = ["WAYS", "Decision", "Latency", "Runtime"]
