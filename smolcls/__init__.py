"""Put a short text into one of a few labels on your own machine, and know how sure that is.

    >>> import smolcls
    >>> smolcls.classify("fix bug in src/auth.ts and run tests").label
    'workflow'

Importing this package loads no model and no native library.
"""

from smolcls.calibration import Calibration
from smolcls.classifier import Classifier, Scores
from smolcls.errors import SmolclsError
from smolcls.prediction import Prediction, StageTrace
from smolcls.registry import load
from smolcls.task import Label, Task

__version__ = "0.1.0"
