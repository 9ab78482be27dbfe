"""Reading exercises for the built-in model: numbered units, a question, the unit that answers it.

Two makers share one shape (`Exercise`): this module turns running text into exercises, and
`finetune.base_business` invents documents of an organisation. A question made from a sentence keeps
two to six of its content words, some inflected, replaced by a synonym or dropped, behind a question
word for what was left out (a number, a date, a name); the sentence must still hold more of the
question, weighted by rarity, than every other unit. Unanswerable exercises are made by taking the
answer away and leaving its neighbours, so the topic alone never decides.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import log
from pathlib import Path

REFUSAL = "Not in the documents."
GREETING = "Hello! I am the small built-in reader. Ask me a question about the loaded documents."
LABELS = 40


def word_lists() -> dict[str, list[str]]:
    """The lists of `base_words.txt` by name."""
    lines = Path(__file__).with_name("base_words.txt").read_text("utf-8").splitlines()
    pairs = [line.split(": ", 1) for line in lines if not line.startswith("#")]
    return {name: items.split("|") for name, items in pairs}


WORDS = word_lists()
STOP = frozenset(WORDS["stop"])
_SYN: dict[str, list[str]] = {}
for _group in map(str.split, WORDS["synonyms"]):
    for _w in _group:
        _SYN.setdefault(_w, []).extend(x for x in _group if x != _w)
_WORD = re.compile(r"[A-Za-z][A-Za-z'’-]*|\d[\d,.:/-]*\d|\d")
_SENTENCE = re.compile(r"(?<=[a-z0-9)\"'][.!?])\s+(?=[A-Z\"])")
_MONTH = "January|February|March|April|May|June|July|August|September|October|November|December"


@dataclass(frozen=True)
class Passage:
    """A heading and the units (sentence, list item, table row) that stand under it."""

    heading: str
    units: tuple[str, ...]


@dataclass(frozen=True)
class Exercise:
    """A question over passages; `answers` are the numbers (from 1) of the units that hold the answer."""

    question: str
    passages: tuple[Passage, ...]
    answers: tuple[int, ...]
    kind: str

    @property
    def units(self) -> list[str]:
        """All units in reading order: number n is `units[n - 1]`."""
        return [u for p in self.passages for u in p.units]

    def prompt(self) -> str:
        """The user message: question, numbered passages, question again (so every unit can see it)."""
        if not self.passages:
            return self.question
        blocks, n = [f"Question: {self.question}"], 0
        for p in self.passages:
            lines = [p.heading] if p.heading else []
            for u in p.units:
                n += 1
                lines.append(f"[{n}] {u}")
            blocks.append("\n".join(lines))
        return "\n\n".join([*blocks, blocks[0]])

    def answer(self) -> str:
        """The wanted reply: citation first, then the unit word for word; or the refusal."""
        if not self.passages:
            return GREETING
        units = self.units
        return " ".join(f"[{n}] {units[n - 1]}" for n in self.answers) if self.answers else REFUSAL


def stem(word: str) -> str:
    """A crude stem, enough to see that `costs` and `cost` are one word."""
    w = word.lower().strip("'’")
    for end in (
        "'s",
        "’s",
        "ations",
        "ation",
        "ings",
        "ing",
        "ies",
        "ied",
        "ment",
        "ed",
        "es",
        "ly",
        "er",
        "s",
        "e",
        "y",
    ):
        if w.endswith(end) and len(w) - len(end) >= 3:
            return w[: -len(end)]
    return w


def content(text: str) -> list[str]:
    """Its words without function words."""
    return [w for w in _WORD.findall(text) if w.lower() not in STOP]


def inflect(word: str, rng: random.Random) -> str:
    """Another form of the same word: plural, gerund, past, or the bare stem."""
    w = word.lower()
    if len(w) < 4 or not w.isalpha() or word[0].isupper():
        return word
    root = next((w[: -len(e)] for e in ("ing", "ed", "es", "s") if w.endswith(e) and len(w) - len(e) >= 3), w)
    if root == w:
        return w + rng.choice(["s", "ing", "ed"]) if w[-1] not in "ey" else w + "s"
    return rng.choice([root, root + "s", root + "e" if w.endswith(("ing", "ed")) else root])


class Rarity:
    """Inverse document frequency by stem, learned from the documents themselves."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.n = max(1, len(texts))
        self.df = Counter(s for t in texts for s in {stem(w) for w in content(t)})

    def __call__(self, word: str) -> float:
        """The rarity of a word, about 0 to 12."""
        return log((self.n + 1) / (self.df.get(stem(word), 0) + 0.5)) + 0.1

    def overlap(self, words: Sequence[str], text: str) -> float:
        """Rarity-weighted share of `words` that stand in `text`."""
        have = {stem(w) for w in content(text)}
        total = sum(self(w) for w in words) or 1.0
        return sum(self(w) for w in words if stem(w) in have) / total


def documents(path: Path, limit: int, rng: random.Random) -> list[list[Passage]]:
    """Up to `limit` documents of a corpus file as sections of sentences, from a random stretch of it."""
    size = path.stat().st_size
    with path.open("rb") as f:
        f.seek(rng.randrange(max(1, size - limit * 6000)) if size > limit * 6000 else 0)
        raw = f.read(limit * 6000 + 20000).decode("utf-8", "ignore")
    out = []
    for doc in raw.split("\f")[1:-1] if raw.count("\f") > 2 else [raw]:
        sections = list(_sections(doc))
        if sum(len(s.units) for s in sections) >= 4:
            out.append(sections)
    return out[:limit]


def shortened(doc: Sequence[Passage], longest: int) -> list[Passage]:
    """Without units over `longest` characters and without sections of fewer than two units."""
    parts = [Passage(p.heading, tuple(u for u in p.units if len(u) <= longest)) for p in doc]
    return [p for p in parts if len(p.units) > 1]


def _sections(doc: str) -> Iterator[Passage]:
    title = heading = ""
    units: list[str] = []
    for para in doc.split("\n\n"):
        para = " ".join(para.split())
        if para.startswith("# "):
            if units:
                yield Passage(heading, tuple(units))
            units, name = [], para[2:].strip()[:60]
            title = title or name
            heading = name if name == title else f"{title} > {name}"
        else:
            units += [s for s in _split(para) if 25 <= len(s) <= 230 and len(content(s)) >= 3]
    if units:
        yield Passage(heading, tuple(units))


def _split(para: str) -> list[str]:
    return [s.strip() for s in _SENTENCE.split(para.removeprefix("- "))]


_ASK = {
    "number": ["How many", "How much", "How many", "What is the number of", "What"],
    "date": ["When did", "When was", "In what year", "When", "What date"],
    "name": ["Who", "Who was", "Which", "What", "Where", "Where is", "Who is"],
    "thing": [
        "What",
        "What is",
        "What does",
        "How",
        "How does",
        "How do I",
        "Why",
        "Which",
        "What are",
        "Is",
        "Can",
        "Does",
        "What happens",
        "Tell me about",
        "Where",
        "Explain",
    ],
}


def question(
    sentence: str, heading: str, rarity: Rarity, rng: random.Random, disguise: float = 1.0
) -> tuple[str, list[str]] | None:
    """A question this sentence answers, and the words of the sentence or heading it rests on."""
    words = _WORD.findall(sentence)
    kind, gone = _wanted(sentence, rng)
    kept = [i for i, w in enumerate(words) if w.lower() not in STOP and w not in gone and len(w) > 1]
    if len(kept) < 2:
        return None
    size = min(len(kept), rng.choice([2, 2, 3, 3, 4, 4, 5, 6]))
    weight = sorted(kept, key=lambda i: -rarity(words[i]) * rng.uniform(0.3, 1.0))
    chosen = sorted(weight[:size])
    used = [words[i] for i in chosen]
    if rng.random() < 0.15:
        rng.shuffle(chosen)
    glue, out = rng.random(), []
    for a, i in enumerate(chosen):
        if a and glue < 0.6 and chosen[a - 1] < i <= chosen[a - 1] + 4:
            out += [w for w in words[chosen[a - 1] + 1 : i] if w.lower() in STOP]
        out.append(_disguise(words[i], rng) if rng.random() < disguise else words[i])
    if heading and rng.random() < 0.15:
        extra = rng.sample(content(heading), min(2, len(content(heading))))
        used, out = used + extra, out + rng.choice([["in"], ["for"], ["of"], []]) + extra
    text = " ".join([rng.choice(_ASK[kind]), *out])
    style = rng.random()
    if style < 0.06:
        return " ".join(out), used
    return (text.lower() if style < 0.2 else text) + ("?" if style > 0.1 else ""), used


def _wanted(sentence: str, rng: random.Random) -> tuple[str, set[str]]:
    """What the question asks for and the words it must therefore not contain."""
    dates = re.findall(rf"(?:{_MONTH}) \d+|\b1\d\d\d\b|\b20\d\d\b", sentence)
    numbers = re.findall(r"\b\d[\d,.]*\b", sentence)
    names = re.findall(r"(?<=[a-z,] )[A-Z][a-z]+(?: [A-Z][a-z]+)*", sentence)
    options: list[tuple[str, set[str]]] = [("thing", set())]
    if dates:
        options += [("date", set(_WORD.findall(dates[0])))] * 3
    if numbers and not dates:
        options += [("number", {numbers[0].rstrip(".,")})] * 3
    if names:
        options += [("name", set(rng.choice(names).split()))] * 2
    return rng.choice(options)


def _disguise(word: str, rng: random.Random) -> str:
    dice = rng.random()
    if dice < 0.25 and word.lower() in _SYN:
        return rng.choice(_SYN[word.lower()])
    if dice < 0.4:
        return inflect(word, rng)
    return word.lower() if dice < 0.47 else word


def exercise(
    docs: Sequence[Sequence[Passage]], rarity: Rarity, rng: random.Random, size: int, disguise: float = 1.0
) -> Exercise | None:
    """One exercise of about `size` units over random documents; None when the draw was unsuitable."""
    doc = rng.choice(docs)
    home = rng.choice(doc)
    start = rng.randrange(max(1, len(home.units) - 2))
    width = rng.randint(2, max(3, min(8, size // 2)))
    near = Passage(home.heading, home.units[start : start + width])
    target = rng.choice(near.units)
    asked = question(target, near.heading, rarity, rng, disguise)
    first = home is doc[0] and start == 0 and rng.random() < 0.5
    if (
        first
        and " > " not in home.heading
        and (
            m := re.match(rf"(?:The |A )?{re.escape(home.heading)}\b.{{0,80}}? (is|was|are) ", home.units[0])
        )
    ):
        target, asked = (
            home.units[0],
            (f"{rng.choice(['What', 'Who'])} {m[1]} {home.heading}?", content(home.heading)),
        )
    if asked is None:
        return None
    passages, total = [near], len(near.units)
    while total < size:
        other = rng.choice(doc if rng.random() < 0.5 else rng.choice(docs))
        at = rng.randrange(len(other.units))
        units = [
            u for u in other.units[at : at + rng.randint(1, 7)] if all(u not in p.units for p in passages)
        ]
        units = units[: size - total]
        if not units:
            size -= 1
            continue
        passages.append(Passage(other.heading, tuple(units)))
        total += len(units)
    rng.shuffle(passages)
    return check(asked, target, passages, rarity, rng)


def check(
    asked: tuple[str, list[str]], target: str, passages: Sequence[Passage], rarity: Rarity, rng: random.Random
) -> Exercise | None:
    """Number the units; keep the exercise only if `target` clearly holds most of the question.

    One in six loses its answer and becomes a refusal, unless another unit would nearly do.
    """
    text, words = asked
    score = {u: rarity.overlap(words, u + " " + p.heading) for p in passages for u in p.units}
    best = max((s for u, s in score.items() if u != target), default=0.0)
    if score[target] < best + 0.15:
        return None
    if rng.random() < 1 / 6:
        if best > 0.7:
            return None
        passages = [Passage(p.heading, tuple(u for u in p.units if u != target)) for p in passages]
        return Exercise(text, tuple(p for p in passages if p.units), (), "text-none")
    units = [u for p in passages for u in p.units]
    return Exercise(text, tuple(passages), (units.index(target) + 1,), "text")
