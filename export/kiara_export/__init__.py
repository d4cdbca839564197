"""Export Kiara checkpoints to ONNX bundles, with measured figures on their quality and speed."""
