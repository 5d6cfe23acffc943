"""The fields of a request's body: their names and types. What they ask for is made of them in requests.py."""

from typing import Annotated, Any, Literal, TypeVar

import pydantic

from msm_jax.server.errors import ApiError

Form = TypeVar("Form", bound="Fields")
_T = TypeVar("_T")


class _FailFast(pydantic.FailFast):
    """A long list of mistakes is told at the first of them."""

    __hash__ = object.__hash__  # which unions ask for


_Many = Annotated[list[_T], _FailFast()]
# Unions, of which pydantic tells one mistake for each member.
_UNIONS = {
    "prompt": "must be a text, a list of texts, a list of ids, or a list of lists of ids",
    "stop": "must be a text, or a list of texts",
    "content": 'must be a text, or a list of {"type": "text", "text"}',
    "tool_choice": "must be 'auto' or 'none'; this model cannot be made to call a tool",
}


class _Strict(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class StreamOptions(_Strict):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None  # there is none


class Fields(_Strict):
    """What chats and texts have in common. Ranges are those of `Sampling`, which checks them. None: as if left out."""

    model: str
    n: int | None = None
    seed: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, Any] | None = None
    max_tokens: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    # They say nothing of the answer.
    user: Any = None
    store: Any = None
    metadata: Any = None
    service_tier: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None
    prompt_cache_retention: Any = None
    prediction: Any = None


class TextFields(Fields):
    prompt: str | _Many[str] | _Many[int] | _Many[_Many[int]]
    logprobs: int | None = None
    echo: bool | None = None
    best_of: Literal[1] | None = None
    suffix: Literal[""] | None = None

    @property
    def length(self) -> tuple[str, int | None]:
        """The field that says how long an answer may be, and what it says."""
        return "max_tokens", self.max_tokens

    @property
    def likeliest(self) -> tuple[str, int | None]:
        """The field that says of how many ids log-probabilities are given, and what it says."""
        return "logprobs", self.logprobs


class TextPart(_Strict):
    type: Literal["text"]
    text: str


class Function(_Strict):
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: Literal[False] | None = None


class Tool(_Strict):
    type: Literal["function"]
    function: Function


class CalledFunction(_Strict):
    name: str
    arguments: str


class ToolCall(_Strict):
    id: str | None = None
    type: Literal["function"] = "function"
    function: CalledFunction
    index: int | None = None  # as pieces of streams have it


class ChatMessage(_Strict):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | _Many[TextPart] | None = None
    name: str | None = None
    tool_calls: _Many[ToolCall] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    # As clients send answers back; they hold nothing here.
    refusal: None = None
    audio: None = None
    function_call: None = None
    annotations: list[Any] | None = None


class TemplateFields(_Strict):
    enable_thinking: bool | None = None


class TextFormat(_Strict):
    type: Literal["text"]


class ChatFields(Fields):
    messages: _Many[ChatMessage]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: _Many[Tool] | None = None
    tool_choice: Literal["auto", "none"] | None = None
    parallel_tool_calls: Literal[True] | None = None
    chat_template_kwargs: TemplateFields | None = None
    reasoning_effort: Literal["none"] | None = None
    response_format: TextFormat | None = None
    modalities: list[Literal["text"]] | None = None

    @property
    def length(self) -> tuple[str, int | None]:
        """As of texts. Raises: ApiError if two are said."""
        if self.max_completion_tokens is None:
            return "max_tokens", self.max_tokens
        if self.max_tokens not in (None, self.max_completion_tokens):
            raise ApiError(400, "max_completion_tokens and max_tokens differ; give one", "max_completion_tokens")
        return "max_completion_tokens", self.max_completion_tokens

    @property
    def likeliest(self) -> tuple[str, int | None]:
        """As of texts. Raises: ApiError if how many is said, and not that they are wanted."""
        if self.top_logprobs is not None and not self.logprobs:
            raise ApiError(400, "top_logprobs is set, and logprobs is not; set both", "top_logprobs")
        return "top_logprobs", (self.top_logprobs or 0) if self.logprobs else None


def read(form: type[Form], body: bytes) -> Form:
    """Raises: ApiError naming the field that is unknown, missing, or of another type."""
    try:
        return form.model_validate_json(body)
    except pydantic.ValidationError as error:
        [first, *_] = error.errors(include_url=False, include_input=False, include_context=False)
    path = [str(part) for part in first["loc"]]
    if not path:
        raise ApiError(400, f"the body must be a JSON object: {first['msg']}")
    union = next((i for i, part in enumerate(path) if part in _UNIONS), None)
    if union is not None and first["type"] != "missing":
        # `content` of a message may be wrong inside of a part that says what is wrong with it.
        path, says = path[: union + 1], _UNIONS[path[union]]
    elif first["type"] == "extra_forbidden":
        says = "there is no such field here"
    elif first["type"] == "missing":
        says = "is missing"
    else:
        says = first["msg"].replace("Input should be", "must be")
        says = (
            f"{says}; this server can do nothing else" if first["type"] in ("literal_error", "none_required") else says
        )
    name = ".".join(path)
    raise ApiError(400, f"{name}: {says}", param=name)
