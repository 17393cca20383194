"""A chain with a stage that fails: its Ollama is not running. The answer comes all the same, the trace says
why, and after a failure the stage is left alone for a while. Needs nothing but smolcls.
"""

from smolcls import ConfidenceRouter, Stage

router = ConfidenceRouter(
    [
        Stage("rules", accept={"command": 0.95}),  # only a sure command ends here
        Stage("ollama:three-type", threshold=0.8, failures=1, cooldown=30, options={"host": "127.0.0.1:9"}),
        Stage("rules", name="last resort"),
    ]
)

with router:
    for text in ["/help", "what is recursion?", "run the tests and push"]:
        answer = router.classify(text)
        print(f"{text}: {answer.label} ({answer.confidence:.0%}, {answer.latency_ms:.1f} ms)")
        for step in answer.trace:
            print(f"    {step.stage}: {step.outcome} ({step.reason})")
