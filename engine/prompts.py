"""A request to token ids, and how many of them every user's request begins with."""

from __future__ import annotations

from core.catalog import CatalogModel
from engine.backend import Prompt
from engine.native import NativeModel
from engine.requests import BadRequest, Request
from engine.schemas import writable
from engine.template import render

# no text comes near this many characters a token; more is refused before seconds go into tokenizing it
CHARACTERS_PER_TOKEN = 64


def prepare(native: NativeModel, model: CatalogModel, request: Request, context: int) -> Prompt:
    """The encoded prompt.

    Raises BadRequest, naming both counts, when it leaves no room for an answer in `context` tokens.
    """
    require_plausible(request, context)
    if request.schema and not writable(native):
        raise BadRequest("This model's vocabulary cannot write JSON; ask for text.", "response_format")
    prompt = encode(native, model, request)
    if len(prompt.tokens) + (request.sampling.max_tokens > 0) > context:
        raise BadRequest(
            f"The prompt has {len(prompt.tokens)} tokens and this model holds {context}; "
            "at least one must be left for the answer.",
            _where(request),
            code="context_length_exceeded",
        )
    return prompt


def require_plausible(request: Request, context: int) -> None:
    """Raise BadRequest for a prompt whose characters alone say that it cannot fit `context` tokens."""
    size = len(request.prompt) + sum(len(message["content"]) for message in request.messages)
    if size > context * CHARACTERS_PER_TOKEN:
        raise BadRequest(
            f"The prompt has {size} characters, far more than the {context} tokens of this model.",
            _where(request),
            code="context_length_exceeded",
        )


def _where(request: Request) -> str:
    """The parameter that holds the prompt."""
    return "messages" if request.kind == "chat" else "prompt"


def encode(native: NativeModel, model: CatalogModel, request: Request) -> Prompt:
    """Token ids of a chat rendered by the model's pinned template, or of plain text."""
    if request.kind == "text":
        tokens = native.tokenize(request.prompt)
        return Prompt(tuple([native.bos, *tokens] if native.adds_bos else tokens or [max(native.bos, 0)]))
    bos = native.token_text(native.bos) if native.bos >= 0 else ""
    tokens = native.encode(render(model.template, request.messages, bos))
    first, *rest = request.messages
    if first["role"] != "system" or not rest:
        return Prompt(tuple(tokens))
    # encoded once more with another message behind, whose first character differs: what is equal before it
    # comes from the system message alone
    other = "1" if rest[0]["content"].startswith("0") else "0"
    again = native.encode(render(model.template, [first, {**rest[0], "content": other}], bos))
    pairs = zip(tokens, again, strict=False)
    return Prompt(tuple(tokens), next((at for at, (left, right) in enumerate(pairs) if left != right), 0))
