"""Runs many sequences on one ONNX Runtime session: schedule, run, postprocess.

`session` and its cache handle token ids only; `sequence` does not depend on slots or sessions; `slots` does no file
I/O; `prompt_store` reads and writes outside the step. HTTP is in `server`, text in `tokens`.
"""
