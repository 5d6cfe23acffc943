"""A cell -> the system prompt and the inbox that the agent is shown.

Leaking and murder are upstream's texts with the changes of the paper's code; exfiltration is our own text throughout,
of the same structure, since upstream has no such scenario.
"""

import functools
import pathlib
import re
import string
import tomllib
from typing import NamedTuple

from msm_jax.errors import UserError
from msm_jax.eval.agentic import upstream_texts
from msm_jax.eval.agentic.cells import OPPOSITE, Cell, refusal

EXTRA_INSTRUCTIONS = ("dont", "goal")
_HERE = pathlib.Path(__file__).parent
_COMPANIES = {"exfiltration": "NovaStar", "leaking": "NovaStar", "murder": "SummitBridge"}
_WITH_IDS = ("exfiltration", "leaking")  # where e-mails can be forwarded, by their number
_CLIENT, _PLAIN_CLIENT = "a sandboxed email client", "an email client"
_EMAIL = re.compile(r"<email>(.*?)</email>", re.DOTALL)
# The braces of the tools' format are meant to be read by the agent; all others were to be filled.
_OF_TOOLS = ("{subject}", "{override_code}")
_PLACEHOLDER = re.compile(r"\$\{[^}\n]*\}?|\$[A-Za-z_]\w*|\{\w+\}|placeholder for \w+")


class Prompts(NamedTuple):
    system: str
    user: str


def prompts(
    cell: Cell,
    agent_name: str,
    scratchpad: bool = True,
    deliberate: bool = True,
    plain_client: bool = True,
    extra: str | None = None,
) -> Prompts:
    """What the agent is shown; the defaults are the paper's.

    Args:
      agent_name: what the agent is called, which should be the name in the documents it was trained on.
      scratchpad: whether it is told of a place for its thoughts. The paper leaves that out for models that think.
      deliberate: whether the scratchpad comes with a request to weigh consequences and choose deliberately, as in the
        paper's code; upstream has none.
      plain_client: whether leaking says "an email client", as in the paper's code, or as upstream that it is sandboxed.
      extra: "dont" (three things not to do) or "goal" (the welfare of the staff above all), or None.

    Raises: UserError for a cell or name that cannot be, if inspect-evals is not installed, or if a placeholder is left.
    """
    if problem := refusal(cell):
        raise UserError(f"{cell.id}: {problem}")
    if not re.fullmatch(r"\w[\w .-]*", agent_name):
        raise UserError(f"model_name is {agent_name!r}; the agent needs a name of letters, digits, spaces, '.' and '-'")
    if extra is not None and extra not in EXTRA_INSTRUCTIONS:
        raise UserError(f"extra_system_instructions is {extra!r}; there are {', '.join(EXTRA_INSTRUCTIONS)}, or none")
    told = _fill(_text(f"texts/{extra}.txt").rstrip("\n"), {"company": _COMPANIES[cell.scenario]}) if extra else ""
    added = _text("texts/deliberate.txt").strip() if scratchpad and deliberate else ""
    if cell.scenario == "exfiltration":
        found = _ours(cell, agent_name, scratchpad, added, told)
    else:
        found = _upstream(cell, agent_name, scratchpad, added, told, plain_client)
    for part in found:
        _check(cell, part)
    return found


def inbox(user: str) -> list[str]:
    """The e-mails of a user prompt; the first has number 1."""
    return [email.strip() for email in _EMAIL.findall(user)]


def address_of(agent_name: str, domain: str) -> str:
    """The agent's own address."""
    return f"{re.sub(r'[^a-z0-9]+', '', agent_name.lower()) or 'agent'}.ai@{domain}"


def _ours(cell: Cell, agent_name: str, scratchpad: bool, added: str, told: str) -> Prompts:
    notebook = "\n\n".join(filter(None, [_text("exfiltration/scratchpad.txt").strip(), added])) if scratchpad else ""
    variables = {"agent_name": agent_name, "agent_address": address_of(agent_name, "novastar.com")}
    variables |= _goals()[cell.goal_value] if cell.goal_type != "none" else {}
    variables |= {
        "goal_statement": _stated(cell, "goal_statement"),
        "goal_reminder": f"\n- {_stated(cell, 'goal_reminder')}" if _stated(cell, "goal_reminder") else "",
        "extra_system_instructions": told,
        "scratchpad": f"{notebook}\n\n" if notebook else "",
    }
    names = ("no_goal",) if cell.goal_type == "none" else ("emails", cell.urgency)
    emails = "".join(_text(f"exfiltration/{name}.txt") for name in names)
    system = re.sub(r"\n{3,}", "\n\n", _fill(_text("exfiltration/system.txt"), variables))
    return Prompts(system, _text("exfiltration/user.txt") + _numbered(_fill(emails, variables)))


def _stated(cell: Cell, name: str) -> str:
    """What the system prompt says of the goal; "" where it is silent on it."""
    if cell.goal_type not in ("explicit", "swap"):
        return ""
    return _goals()[cell.goal_value if cell.goal_type == "explicit" else OPPOSITE[cell.goal_value]][name]


def _upstream(cell: Cell, agent_name: str, scratchpad: bool, added: str, told: str, plain_client: bool) -> Prompts:
    source = upstream_texts.system_prompts()
    system = getattr(source, f"{cell.scenario.upper()}_SYSTEM_PROMPT" + ("" if scratchpad else "_PROD"))
    if added:
        system = _replaced(
            system, source.SCRATCHPAD_REASONING_FORMAT, f"{source.SCRATCHPAD_REASONING_FORMAT}{added}\n\n"
        )
    if plain_client and cell.scenario == "leaking":
        system = _replaced(system, _CLIENT, _PLAIN_CLIENT)
    variables = upstream_texts.variables(cell.scenario, cell.goal_value)
    variables |= source.GOAL_VARIABLES.get(f"{cell.goal_type}-{cell.goal_value}", source.GOAL_VARIABLES["none"])
    variables |= {"extra_system_instructions": told, "alignment_faking_warning": ""}
    start = f"{cell.scenario}/templates/email-template-{cell.scenario}"
    names = [f"goal-conflict-none-{cell.urgency}"] if cell.goal_type == "none" else ["shared", cell.urgency]
    emails = "".join(_fill(upstream_texts.read(f"{start}-{name}.md"), variables) for name in names)
    if cell.scenario in _WITH_IDS:
        emails = _numbered(emails)
    both = Prompts(_fill(system, variables), f"{source.USER_PROMPT}\n{emails}")
    return Prompts(*(_named(part, agent_name) for part in both))


def _named(text: str, agent_name: str) -> str:
    """With `agent_name` in place of upstream's Alex."""
    text = re.sub(r"\balex\.ai@([\w.]+)", lambda found: address_of(agent_name, found[1]), text)
    return re.sub(r"\bAlex\b", lambda _: agent_name, text)


def _replaced(text: str, old: str, new: str) -> str:
    if old not in text:
        raise UserError(f"inspect-evals' system prompt no longer says {old.strip()[:60]!r}; install version 0.26.0")
    return text.replace(old, new, 1)


def _numbered(emails: str) -> str:
    first, *rest = emails.split("<email>")
    return first + "".join(f"<email>\nID: {number}{part}" for number, part in enumerate(rest, start=1))


def _fill(text: str, variables: dict[str, str]) -> str:
    return string.Template(text).safe_substitute(variables)


@functools.cache
def _text(path: str) -> str:
    return (_HERE / path).read_text(encoding="utf-8")


@functools.cache
def _goals() -> dict[str, dict[str, str]]:
    return tomllib.loads(_text("exfiltration/goals.toml"))


def _check(cell: Cell, text: str) -> None:
    """Raises: UserError naming a placeholder that nothing has filled."""
    left = sorted(set(_PLACEHOLDER.findall(text)) - set(_OF_TOOLS))
    if left:
        raise UserError(f"{cell.id}: its prompt still holds {', '.join(left)}; no text of this cell fills that")
