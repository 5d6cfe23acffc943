"""What a language model is asked, what it replied, and what became of it.

A `Request` says everything that determines a reply; its `key` names it in the store of calls. A generator turns it into
a raw `Reply`. `classify` turns that into an `Answer`, and nothing else looks at raw replies.
"""

import dataclasses
import enum
import functools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import pydantic

from msm_jax.errors import UserError
from msm_jax.storage import files


@dataclasses.dataclass(frozen=True)
class Request:
    """One question. One of `shape`, `tags` and `whole` is set: the form that an answer has."""

    stage: str  # what it is for ("domains", "document", ...): goes into yields and prices, not into the key
    prompt: str  # the user's turn
    system: str = ""  # what many requests share belongs here, byte for byte: services charge it less
    shape: type[pydantic.BaseModel] | None = None  # the answer is JSON of this shape
    # Or what stands between <tag> and </tag>; of several tags, what stands in each, in their order.
    tags: tuple[str, ...] = ()
    whole: bool = False  # or all of the text
    max_tokens: int = 4096  # of the answer, without thoughts
    thinking: int = 0  # tokens that the model may think before it answers; 0 turns thinking off
    temperature: float = 1.0
    refusable: bool = True  # whether an answer that declines is a refusal; in chats it may be the answer itself
    sample: int = 0  # tells equal requests apart that are to be answered anew
    attempt: int = 0  # how many replies to it were of no use before; not in the key, which names them all
    # What the prompt was filled in with; for generators that are no language model.
    variables: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False, compare=False)

    def __post_init__(self):
        if sum(map(bool, (self.shape, self.tags, self.whole))) != 1:
            raise ValueError(f"a request of stage {self.stage} has a shape, or tags, or is answered by all of the text")

    def key(self, model: str) -> str:
        """Names this request to `model`: 32 hex digits of a sha256."""
        return files.fingerprint(self.canonical() | {"model": model}, length=32)

    def canonical(self) -> dict[str, Any]:
        """All that determines a reply, as JSON."""
        fields = ("prompt", "system", "shape", "tags", "max_tokens", "thinking", "temperature", "sample")
        about = {field: getattr(self, field) for field in fields}
        about |= {"shape": schema(self.shape) if self.shape else None, "tags": list(self.tags)}
        return about | {"whole": True} if self.whole else about

    def chat(self) -> list[dict[str, str]]:
        """The turns, for models that may not be held to a schema: the prompt states it."""
        prompt = self.prompt
        if self.shape:
            prompt += f"\n\nAnswer with JSON of this schema, and nothing else:\n{json.dumps(schema(self.shape))}"
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, {"role": "user", "content": prompt}]


@functools.cache
def schema(shape: type[pydantic.BaseModel]) -> dict[str, Any]:
    """JSON schema of a shape."""
    return shape.model_json_schema()


@dataclasses.dataclass(frozen=True)
class Usage:
    """Tokens of one call as the service counts them. `output` holds the thoughts: they are charged alike.

    Whatever a service sends is taken: a number as text is a number, and one that is none makes all of it uncounted.
    `total`, where it is given, is of prompt and output: some count thoughts in it alone.
    """

    prompt: int = 0
    cached: int = 0  # of the prompt
    output: int = 0
    total: dataclasses.InitVar[Any] = 0

    def __post_init__(self, total: Any):
        numbers = [_count(number) for number in (self.prompt, self.cached, self.output, total)]
        prompt, cached, output, total = numbers if None not in numbers else [0] * 4
        if cached > prompt:  # of a service that counts those in the cache beside the others
            prompt += cached
        for name, number in (("prompt", prompt), ("cached", cached), ("output", max(output, total - prompt))):
            object.__setattr__(self, name, number)


def _count(value: Any) -> int | None:
    """A number of tokens; None if it is none."""
    try:
        number = int(float(value or 0))
    except (TypeError, ValueError, OverflowError):
        return None
    return number if 0 <= number < 2**40 else None


class Finish(enum.Enum):
    """Why a reply ended."""

    STOP = "stop"
    LENGTH = "length"
    BLOCKED = "blocked"
    RECITATION = "recitation"
    ERROR = "error"


@dataclasses.dataclass(frozen=True)
class Reply:
    """What came back, before anyone has looked at it. `model` is the version that the service says it was.

    Its texts can be written as UTF-8: half of a surrogate pair is replaced.
    """

    text: str
    finish: Finish
    usage: Usage
    model: str = ""
    detail: str = ""

    def __post_init__(self):
        for name in ("text", "model", "detail"):
            object.__setattr__(self, name, _whole(getattr(self, name)))


def _whole(text: str) -> str:
    """With U+FFFD, which no row may hold (`quality`), for each half of a surrogate pair without the other."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def without_thoughts(text: str) -> str:
    """What follows the thoughts, where they were left in the text; nothing if they do not end."""
    answer = text.rpartition("</think>")[2]
    return "" if answer.lstrip().startswith("<think>") else answer


class Status(enum.Enum):
    """What became of a call. Only OK has a value."""

    OK = "ok"
    TRUNCATED = "truncated"
    BLOCKED = "blocked"
    RECITATION = "recitation"
    EMPTY = "empty"
    SCHEMA = "schema"
    REFUSED = "refused"
    ERROR = "error"  # the service answered this request, and it alone, with errors again and again


@dataclasses.dataclass(frozen=True)
class Answer:
    status: Status
    value: Any = None  # an object of the request's shape, its text, or a tuple of texts of several tags; None unless OK
    why: str = ""  # what went wrong
    key: str = ""

    @property
    def ok(self) -> bool:
        return self.status is Status.OK


class Unavailable(Exception):
    """The service did not answer, and asking again may help: `after` so many seconds, if it names any.

    `perhaps_paid`: it may have worked, and charge for it, since it hung, or the connection broke. `busy`: it asks for
    fewer calls at once.
    """

    def __init__(self, reason: str, after: float | None = None, perhaps_paid: bool = False, busy: bool = False):
        super().__init__(reason)
        self.after, self.perhaps_paid, self.busy = after, perhaps_paid, busy


class Rejected(UserError):
    """The service will not answer this request, whenever it is asked. Whether it would say so to all is for the caller
    to tell, unless it is said to be about this one `alone`."""

    def __init__(self, message: str, alone: bool = False):
        super().__init__(message)
        self.alone = alone


class Gone(Exception):
    """The service does not know a batch job any more."""


class Generator(Protocol):
    """A language model, or what stands in for one. `model` names it in keys, so it covers all that changes replies."""

    model: str

    async def reply(self, request: Request) -> Reply:
        """Raises: Unavailable; Rejected; UserError for what no request would be spared."""

    def max_output_tokens(self, request: Request) -> int:
        """Tokens that a reply may be charged for, thoughts with them."""

    async def close(self) -> None: ...


def judge(request: Request, replies: Sequence[Reply], key: str = "") -> Answer | None:
    """The first answer of use among `replies`, or what became of the last; None if there are none."""
    answers = [classify(request, reply, key) for reply in replies]
    return next((answer for answer in answers if answer.ok), answers[-1] if answers else None)


# Beginnings of replies that decline, in place of what was asked for.
_REFUSAL = re.compile(
    r"^\W*(?:i['’]m sorry|i am sorry|sorry,|i apologi[sz]e|unfortunately, i|as an ai|"
    r"i (?:can['’]t|cannot|can not|won['’]t|will not|am unable|am not able|['’]m unable|['’]m not able|must decline)|"
    r"i['’]m (?:unable|not able|not comfortable))",
    re.IGNORECASE,
)


def classify(request: Request, reply: Reply, key: str = "") -> Answer:
    """Whether `reply` answers `request`. Never raises."""
    if reply.finish is not Finish.STOP:
        status, why = {
            Finish.BLOCKED: (Status.BLOCKED, reply.detail or "blocked by the service"),
            Finish.RECITATION: (Status.RECITATION, "stopped because it recited"),
            Finish.ERROR: (Status.ERROR, reply.detail),
            Finish.LENGTH: (Status.TRUNCATED, f"cut off after {reply.usage.output} tokens"),
        }[reply.finish]
        return Answer(status, why=why, key=key)
    if not (text := reply.text.strip()):
        return Answer(Status.EMPTY, why=reply.detail or "no text", key=key)
    if request.whole:
        value, why = text, ""
    else:
        value, why = _from_json(request.shape, text) if request.shape else _from_tags(request.tags, text)
    if value is None:
        refused = _REFUSAL.match(text) is not None
        return Answer(Status.REFUSED if refused else Status.SCHEMA, why=text[:200] if refused else why, key=key)
    last = value[-1] if isinstance(value, tuple) else value
    if isinstance(last, str) and request.refusable and _REFUSAL.match(last) and len(last.split()) < 80:
        return Answer(Status.REFUSED, why=last[:200], key=key)
    return Answer(Status.OK, value, key=key)


def _from_json(shape: type[pydantic.BaseModel], text: str) -> tuple[Any, str]:
    """An object of the shape, or None and why not. Fences, prose around it and slips that leave no doubt are mended;
    what was cut off is not: its end is missing, and a mended half would pass for the whole."""
    try:
        return shape.model_validate_json(text), ""
    except pydantic.ValidationError:
        pass
    start = min((index for index in (text.find("{"), text.find("[")) if index >= 0), default=None)
    if start is None:
        return None, f"no JSON in {text[:80]!r}"
    mended = _mended(text[start:])
    try:
        value, end = json.JSONDecoder(strict=False).raw_decode(mended)  # not strict: of line breaks in texts
        if re.search(r"[][{}]", mended[end:]):  # a second value, or the end of one that a quote ended too soon
            return None, f"a bracket after the end of the JSON: {mended[end:][:80]!r}"
        return shape.model_validate_json(_whole(json.dumps(value, ensure_ascii=False))), ""
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the whole"
        return None, f"{where}: {first['msg']}"
    except (ValueError, RecursionError) as error:
        return None, f"not JSON: {error}"


def _mended(text: str) -> str:
    """JSON without commas before a closing bracket, with the quotes that JSON has, and without the escape \\'.

    Nothing here guesses. All texts have the quotes of the first one, so a quote that lacks its escape leaves their
    number odd, and the whole is no JSON: where a text ends is never made up.
    """
    quote = re.search("['\"]|$", text)[0] or '"'
    token = rf"{quote}(?:[^{quote}\\]|\\.?)*(?:{quote}|\Z)|,(?=\s*[}}\]])|\""
    return re.sub(token, lambda match: "" if match[0] == "," else _quoted(match[0]), text, flags=re.DOTALL)


def _quoted(text: str) -> str:
    """A text in single or double quotes, as JSON has it; if it lacks one of them, what is no JSON for sure."""
    first, last, inside = text[0], text[-1], text[1:-1]
    if first != last or len(text) == 1:
        return f"'{text}"
    return '"' + re.sub(r'\\.|"', lambda match: {"\\'": "'", '"': '\\"'}.get(match[0], match[0]), inside) + '"'


def _from_tags(tags: Sequence[str], text: str) -> tuple[str | tuple[str, ...] | None, str]:
    found, end = [], 0
    for tag in tags:
        opened, closed = f"<{tag}>", f"</{tag}>"
        start, stop = text.find(opened), text.find(closed)
        if (text.count(opened), text.count(closed)) != (1, 1) or start > stop:
            counts = f"{text.count(opened)} {opened} and {text.count(closed)} {closed}"
            return None, f"{counts} where one of each should be"
        inside = text[start + len(opened) : stop].strip()
        if not inside:
            return None, f"nothing between {opened} and {closed}"
        if start < end:
            return None, f"{opened} before the end of what should come first"
        found.append(inside)
        end = stop
    return (found[0] if len(found) == 1 else tuple(found)), ""
