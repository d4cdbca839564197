"""The ONNX graph: traced from the training module, lowered for each variant, written to disk."""
