"""From weights to the files that answer: merged GGUF, quantised GGUF, ONNX, Modelfile.

Needs numpy and gguf, for ONNX also onnx and tokenizers, no torch; `build` and `train` both stand on it. It knows
nothing of training.
"""
