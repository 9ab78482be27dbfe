"""Chat messages to prompt text, keeping apart what the template wrote and what people wrote.

Only the catalog's pinned template is rendered; the one inside a GGUF file is data and never executed
(CVE-2024-34359 and its repeats). Content is put in after rendering, so a `<|im_start|>` typed by a user or
found in a document stays text and can forge no role.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from core.errors import ModelError
from core.types import Message

if TYPE_CHECKING:
    from jinja2 import Template


@dataclass(frozen=True)
class Segment:
    """A stretch of the prompt; control tokens may be read only in what the template wrote."""

    text: str
    from_template: bool


def render(template: str, messages: Sequence[Message], bos: str = "") -> list[Segment]:
    """Render messages with an open assistant turn at the end, as segments in order.

    Raises ModelError when the template is not valid Jinja or loses a message.
    """
    mark = f"\x00{secrets.token_hex(8)}:"
    masked = [
        {"role": message["role"], "content": f"{mark}{number}\x00"} for number, message in enumerate(messages)
    ]
    try:
        text = compiled(template).render(messages=masked, bos_token=bos, add_generation_prompt=True)
    except Exception as error:  # an expression in a template can raise anything
        raise ModelError(
            f"The chat template cannot be rendered: {error}.", "Mend it in the catalog."
        ) from error
    first, *rest = text.split(mark)
    segments = [Segment(first, True)]
    for part in rest:
        number, _, following = part.partition("\x00")
        segments += [Segment(messages[int(number)]["content"], False), Segment(following, True)]
    return [segment for segment in segments if segment.text]


@lru_cache(maxsize=16)
def compiled(template: str) -> Template:
    """The template compiled in Jinja's immutable sandbox, with the white-space rules transformers uses."""
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    # autoescape is HTML's: here it would turn & into &amp; in prompts
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, autoescape=False)
    return environment.from_string(template)
