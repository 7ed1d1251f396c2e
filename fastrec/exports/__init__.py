"""A compressed model for other servers: one ONNX file in standard operators, and a model repository of Triton."""

from __future__ import annotations

from .onnx_file import Exported, export_onnx
from .triton import export_triton

__all__ = ["Exported", "export_onnx", "export_triton"]
