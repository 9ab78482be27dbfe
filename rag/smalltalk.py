"""A closed list of greetings, thanks and questions about the assistant itself; they need no documents."""

from __future__ import annotations

import re

_GREETING = re.compile(
    r"(?:hi|hello|hey|hallo|hi there|hello there|hey there|good (?:morning|afternoon|evening|day)|greetings)"
    r"(?: (?:understudy|everyone|all))?"
)
_THANKS = re.compile(
    r"(?:many )?(?:thanks|thank you|thx|cheers)(?: (?:a lot|very much|so much|again|for your help))?"
)
_WHO = re.compile(
    r"(?:who|what) (?:are|r) you|what is your name|what can you do|how do you work"
    r"|(?:what|which) model (?:are you|is this)|are you (?:a |an )?(?:human|robot|bot|ai|person)|help"
)
_BYE = re.compile(r"(?:good ?bye|bye|bye bye|see you|good night)")


def small_talk(question: str, model: str) -> str | None:
    """The fixed reply to a greeting and the like, naming the model; None for anything else."""
    plain = " ".join(re.sub(r"[^\w\s]", " ", question.lower()).split())
    if _GREETING.fullmatch(plain):
        return "Hello! Ask me a question about the loaded documents; I show where each answer stands."
    if _THANKS.fullmatch(plain):
        return "You are welcome. Your votes on answers help me learn."
    if _BYE.fullmatch(plain):
        return "Goodbye!"
    if _WHO.fullmatch(plain):
        return (
            f"I am Understudy, running on the model {model}. I answer from the loaded documents and cite the"
            " place of every sentence. When they do not hold the answer, I say so."
        )
    return None
