"""What calls cost."""

import dataclasses
import pathlib
import tomllib

from msm_jax.errors import UserError
from msm_jax.llm.request import Reply, Request, Usage

# What each service charges of the standard price (Gemini's pricing page).
SERVICES = {"standard": 1.0, "flex": 0.5, "batch": 0.5}


@dataclasses.dataclass(frozen=True)
class Price:
    """Dollars per million tokens. Thoughts are charged as output."""

    prompt: float = 0.0
    cached: float = 0.0
    output: float = 0.0

    def cost(self, usage: Usage) -> float:
        """Dollars of one call."""
        read = (usage.prompt - usage.cached) * self.prompt + usage.cached * self.cached
        return (read + usage.output * self.output) / 1e6

    def charged(self, reply: Reply, most: float) -> float:
        """Dollars of a reply; `most`, where the service does not count the prompt, or the text that it wrote."""
        counted = reply.usage.prompt and (reply.usage.output or not reply.text)
        return self.cost(reply.usage) if counted else most

    def most(self, request: Request, output: int) -> float:
        """Dollars that the call costs at most, with `output` tokens. A token of the prompt holds at least one byte."""
        asked = sum(len(text.encode()) for text in (request.prompt, request.system, str(request.canonical()["shape"])))
        return self.cost(Usage(prompt=asked, output=output))

    def __mul__(self, factor: float) -> "Price":
        return Price(self.prompt * factor, self.cached * factor, self.output * factor)


FREE = Price()


def price_of(model: str) -> Price:
    """The standard price of a model of Gemini.

    Raises: UserError if the table does not have it.
    """
    table = tomllib.loads(pathlib.Path(__file__).with_name("prices.toml").read_text())
    name = max((name for name in table if model.startswith(name)), key=len, default=None)
    if name is None:
        raise UserError(
            f"no price is known of {model}, and without one no budget can be kept; set config.calls.price to "
            "(prompt, cached, output) in dollars per million tokens"
        )
    return Price(*table[name])
