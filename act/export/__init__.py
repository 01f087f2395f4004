"""Writing a compressed model as a file that other runtimes execute."""

from act.export.onnx import export_onnx

__all__ = ["export_onnx"]
