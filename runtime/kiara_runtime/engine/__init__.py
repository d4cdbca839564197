"""Many sequences on one ONNX Runtime session: schedule, run, postprocess.

session and its cache know token ids only; sequence knows neither slots nor sessions; slots know no files; the prompt
store reads and writes outside the step. HTTP and text formats are not here (`server`, `tokens`).
"""
