"""From labelled rows to a fine-tuned, quantised model (GGUF, ONNX), with its calibration, metrics and Modelfile.

    from smolcls.train import TrainConfig, train

    run = train(TrainConfig(data="rows.jsonl", out=Path("runs/mine")), task="mine.toml")
    run.model  # runs/mine/model.gguf

Imported late, by the command line's commands and the scikit-learn estimator. Importing it loads no library.
"""

from smolcls.train.config import TrainConfig
from smolcls.train.pipeline import export, export_checkpoint, train
from smolcls.train.run import Run
from smolcls.train.watch import Watcher

__all__ = ["Run", "TrainConfig", "Watcher", "export", "export_checkpoint", "train"]
