"""From weights to the files that answer: merged GGUF, quantised GGUF, Modelfile.

Needs numpy and gguf, no torch; `build` and `train` both stand on it. It knows nothing of training.
"""
