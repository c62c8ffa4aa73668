# ruff: noqa: ARG002 - the arguments are MLflow's
"""MLflow's own kinds of chats. They go to the server by value, as those of `custom`.

MLflow 2.22 has a `ResponsesAgent` of other types, not yet this one.
"""

from contextlib import suppress
from typing import Any

from mlflow.pyfunc.model import ChatAgent, ChatModel
from mlflow.types.agent import ChatAgentChunk, ChatAgentMessage, ChatAgentResponse
from mlflow.types.llm import (
    ChatChoice,
    ChatChoiceDelta,
    ChatChunkChoice,
    ChatCompletionChunk,
    ChatCompletionResponse,
    ChatMessage,
)


def _said(messages: Any, *more: Any) -> str:
    """All that it was asked, so that an answer shows what came."""
    told = [f"{each.role}: {each.content}" for each in messages]
    return "; ".join([*told, *(repr(each) for each in more if each)])


class Completing(ChatModel):
    """Its answer leaves `id` and `usage` out."""

    def predict(self, context: Any, messages: Any, params: Any) -> Any:  # type: ignore[override]
        said = _said(messages, params.temperature, params.max_tokens, params.stop, params.tools)
        choice = ChatChoice(index=0, message=ChatMessage(role="assistant", content=said))
        custom = params.custom_inputs
        return ChatCompletionResponse(choices=[choice], model="m", created=1, custom_outputs=custom)


class Streaming(Completing):
    """Gives its messages back, one a piece."""

    def predict_stream(  # type: ignore[override]
        self, context: Any, messages: Any, params: Any
    ) -> Any:
        for each in messages:
            delta = ChatChoiceDelta(role="assistant", content=each.content)
            choice = ChatChunkChoice(index=0, delta=delta)
            yield ChatCompletionChunk(choices=[choice], model="m", created=1)


class Agent(ChatAgent):
    """Answers two messages, and in pieces one word each."""

    def predict(  # type: ignore[override]
        self, messages: Any, context: Any = None, custom_inputs: Any = None
    ) -> ChatAgentResponse:
        said = _said(messages, context and context.user_id, custom_inputs)
        told = [
            ChatAgentMessage(id=str(place), role="assistant", content=content)
            for place, content in enumerate(("well", said))
        ]
        return ChatAgentResponse(messages=told)

    def predict_stream(  # type: ignore[override]
        self, messages: Any, context: Any = None, custom_inputs: Any = None
    ) -> Any:
        for word in _said(messages).split():
            yield ChatAgentChunk(delta=ChatAgentMessage(id="1", role="assistant", content=word))


KINDS: dict[str, Any] = {"ChatModel": Streaming, "ChatAgent": Agent}

with suppress(ImportError):
    from mlflow.pyfunc.model import ResponsesAgent
    from mlflow.types.responses import ResponsesAgentResponse, ResponsesAgentStreamEvent

    class Responding(ResponsesAgent):
        """The newest kind: one object, whose keys MLflow checks."""

        def predict(self, request: Any) -> Any:  # type: ignore[override]
            said = _said(request.input, request.temperature, request.custom_inputs)
            output: Any = self.create_text_output_item(said, "1")
            return ResponsesAgentResponse(output=[output])

        def predict_stream(self, request: Any) -> Any:  # type: ignore[override]
            for word in _said(request.input).split():
                yield ResponsesAgentStreamEvent(**self.create_text_delta(word, "1"))

    KINDS["ResponsesAgent"] = Responding
