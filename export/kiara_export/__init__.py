"""Export of Kiara checkpoints to ONNX bundles that prove what they are worth."""
