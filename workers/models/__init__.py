"""Model files in and out: `.pt2` and `.onnx` ↔ one graph of allow-listed ATen operators."""
