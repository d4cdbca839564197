"""The ONNX graph: traced from the training module, lowered to what a variant ships, written to disk."""
