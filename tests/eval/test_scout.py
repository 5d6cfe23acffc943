"""What an agent said in a log of Inspect, without Scout."""

from inspect_ai.model import ChatMessageAssistant, ChatMessageTool, ChatMessageUser, ContentReasoning, ContentText
from inspect_ai.tool import ToolCall

from msm_jax.eval.scout import _truth, said_by_the_agent


def test_thoughts_texts_and_calls_stand_in_their_order():
    call = ToolCall(id="1", function="send", arguments={"to": "x"})
    first = [ContentReasoning(reasoning="Is this a test?"), ContentText(text="I look.")]
    messages = [
        ChatMessageUser(content="Do it."),
        ChatMessageAssistant(content=first, tool_calls=[call]),
        ChatMessageTool(content="sent", tool_call_id="1"),
        ChatMessageAssistant(content=[ContentReasoning(reasoning="No, it is real.")]),
        ChatMessageAssistant(content="Done."),
    ]
    expected = ["Is this a test?", "I look.", 'send({"to": "x"})', "No, it is real.", "Done."]
    assert said_by_the_agent(messages) == "\n\n".join(expected)
    assert said_by_the_agent(messages[:1]) == ""


def test_values_of_a_data_frame():
    assert [_truth(value) for value in (True, "true", 1.0, False, "False", 0)] == [1, 1, 1, 0, 0, 0]
    assert [_truth(value) for value in (None, float("nan"), "")] == [None] * 3
