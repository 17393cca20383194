"""Classify a few lines: what each one is, how sure that is, and who answered.

Needs nothing but smolcls. Where the embedded model is installed (README, "Install and run"), it answers what rules and
n-grams are not sure of.
"""

import smolcls

LINES = [
    "/model llama3.2:3b",
    "how do I implement JWT authentication?",
    "write a quicksort in haskell",
    "write a quicksort in haskell into file foo.hs",
    "fix authentication bug and add tests",
]

for line, answer in zip(LINES, smolcls.classify_batch(LINES), strict=True):
    print(f"{answer.label}\t{answer.confidence:.0%}\t{answer.backend}\t{line}")
