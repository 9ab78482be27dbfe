"""The JSON shapes a reply may be held to: those written here, by name, and no others.

A grammar from outside can make the sampler work for ever or overflow its stacks (reliability row S18), so
none is taken: a client names one of SCHEMAS. llama-cpp-python's own converter turns it into a grammar, which
is the first link of the reply's sampler chain and leaves only tokens that keep to it.
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

from core.errors import ModelError
from engine.native import NativeModel, binding, last_words

# Every property is required and nothing else is allowed, so a reply has exactly one shape. Lengths are left
# to max_tokens: the converter nests a group for every character allowed.
SCHEMAS: dict[str, dict[str, Any]] = {
    "cited_answer": {
        "type": "object",
        "properties": {
            "answer": {"type": "string"},
            "citations": {"type": "array", "items": {"type": "integer"}, "maxItems": 16},
        },
        "required": ["answer", "citations"],
        "additionalProperties": False,
    },
    "questions": {
        "type": "object",
        "properties": {"questions": {"type": "array", "items": {"type": "string"}, "maxItems": 10}},
        "required": ["questions"],
        "additionalProperties": False,
    },
}
_ASCII = "".join(map(chr, range(0x20, 0x7F)))
# the converter lets raw control characters into strings, which JSON forbids
_LOOSE, _STRICT = r'char ::= [^"\\] |', r'char ::= [^"\\\x7F\x00-\x1F] |'


@lru_cache(maxsize=len(SCHEMAS))
def grammar(name: str) -> str:
    """The grammar (GBNF) of a registered schema; raises KeyError for any other name."""
    convert = binding("llama_grammar").json_schema_to_gbnf
    # in the order in which they are written: the answer first, then what it rests on
    order = list(SCHEMAS[name]["properties"])
    text = str(convert(json.dumps(SCHEMAS[name]), order))
    if _LOOSE not in text:
        raise ModelError("llama-cpp-python writes another grammar for strings.", "Adapt engine/schemas.py.")
    return text.replace(_LOOSE, _STRICT)


def writable(model: NativeModel) -> bool:
    """Whether the vocabulary can spell every ASCII character; otherwise no token might be left to choose."""
    return all(
        b"".join(map(model.piece, model.tokenize(char))).strip() == char.encode().strip() for char in _ASCII
    )


def constraint(model: NativeModel, name: str) -> Any:
    """llama.cpp's sampler that holds one reply to a registered schema; whoever takes it frees it.

    Raises ModelError when llama.cpp refuses the grammar.
    """
    pointer = model.library.llama_sampler_init_grammar(model.vocab, grammar(name).encode(), b"root")
    if not pointer:
        raise ModelError(f"llama.cpp refused the schema {name}: {last_words()}", "Ask for plain text.")
    return pointer
