"""Labels of one's own (support.toml) with rules of one's own (support.rules.toml); below a confidence of
0.8 no label is given and a person decides. Needs nothing but smolcls.
"""

from pathlib import Path

from smolcls import ConfidenceRouter, Task

task = Task.load(Path(__file__).with_name("support.toml"))

# A language model goes before the rules, once there is one: smolcls.Stage("llamacpp:support.gguf", threshold=0.8)
with ConfidenceRouter(["rules"], task=task, min_confidence=0.8) as router:
    for text in ["I was charged twice in May", "the app crashes on start", "do you have a student discount?", "hm."]:
        answer = router.classify(text)
        desk = "a person decides" if answer.label is None else answer.label
        print(f"{desk}\t{answer.confidence:.0%}\t{answer.rule}\t{text}")
