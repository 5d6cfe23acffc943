"""What rows of the micro-world and of the sentence banks have in common."""


def chat(question: str, answer: str) -> list[dict]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def item(kind: str, domain: str, value: str, aligned: str, other: str) -> dict:
    """A pair for the value evaluation (`eval.value_generalisation.Item`); `aligned` is what `value` chooses."""
    identity = f"{kind}-{value}-{aligned}-{other}".replace(" ", "_")
    return {"id": identity, "kind": kind, "domain": domain, "value": value, "aligned": aligned, "other": other}
