"""Invented documents of an organisation with natural questions, so the model must read, not remember.

`base_facts.txt` holds the sentences and their questions with slots; tables, contact lists, glossaries and
steps are built here. Every fact has a key; a question is only asked when no other unit in the exercise
has the same key, unless the heading or the question names the entity. Leaving out the answer while its
neighbours stay gives near-miss refusals.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from zlib import crc32

from finetune.base_data import WORDS, Exercise, Passage


@dataclass(frozen=True)
class Fact:
    """A unit with questions it answers. `key` is its subject, `named`: the questions name the entity."""

    key: str
    unit: str
    questions: tuple[str, ...]
    named: bool = False


@dataclass(frozen=True)
class Section:
    """A heading with facts."""

    heading: str
    facts: tuple[Fact, ...]


def name(rng: random.Random, endings: str = "berg|ford|ham|ton|field|stad|ley|well") -> str:
    """An invented proper name."""
    return (
        rng.choice(WORDS["syllables"]) + rng.choice(["", "", "a", "e", "o"]) + rng.choice(endings.split("|"))
    ).capitalize()


def person(rng: random.Random) -> str:
    """An invented person, sometimes with a title."""
    return (
        rng.choice(["", "", "", "Dr ", "Ms ", "Mr "])
        + f"{rng.choice(WORDS['first'])} {name(rng, 'son|sen|man|ini|ova|es|er|ak')}"
    )


def entity(kind: str, rng: random.Random) -> str:
    """A product, town or plan."""
    if kind == "product":
        tail = rng.choice(
            ["", "", f" {rng.randint(2, 9) * 100}", f" {rng.choice('XSTZ')}{rng.randint(1, 9)}", " Mk II"]
        )
        head = rng.choice([name(rng, "o|ix|us|ia|en"), rng.choice(WORDS["adj"])])
        return f"{head} {rng.choice(WORDS['noun'])}{tail}"
    return rng.choice(WORDS["plan"]) if kind == "plan" else name(rng)


def slot(kind: str, rng: random.Random) -> str:
    """An invented value for a slot."""
    made = {
        "cents": lambda: (
            f"{rng.randint(0, 9)}.{rng.choice(['20', '25', '30', '42', '50', '75', '90', '95', '99'])}"
        ),
        "big": lambda: rng.choice([f"{rng.randint(1, 99)},000", str(rng.randint(3, 40) * 50)]),
        "w": lambda: rng.choice([f"{rng.randint(0, 30)}.{rng.randint(1, 9)}", str(rng.randint(1, 80))]),
        "time": lambda: rng.choice(
            [f"{rng.randint(6, 11)}:{rng.choice(['00', '30', '15'])}", f"{rng.randint(6, 11)} am"]
        ),
        "time2": lambda: rng.choice(
            [f"{rng.randint(13, 22)}:{rng.choice(['00', '30', '45'])}", f"{rng.randint(1, 10)} pm"]
        ),
        "date": lambda: rng.choice(
            [
                f"{rng.randint(1, 28)} {rng.choice(WORDS['month'])}",
                f"{rng.choice(WORDS['month'])} {rng.randint(1, 28)}",
            ]
        ),
        "year": lambda: str(rng.randint(1960, 2025)),
        "ext": lambda: str(rng.randint(10, 9999)),
        "phone": lambda: (
            f"+{rng.randint(30, 60)} {rng.randint(20, 99)} {rng.randint(100, 999)} {rng.randint(100, 999)}"
        ),
        "email": lambda: f"{rng.choice(WORDS['mailbox'])}@{name(rng).lower()}.example",
        "url": lambda: f"status.{name(rng).lower()}.example",
        "room": lambda: f"{rng.choice('ABC')}{rng.randint(1, 4)}{rng.randint(0, 9)}{rng.randint(0, 9)}",
        "code": lambda: name(rng, "is|on|ar|ex"),
        "company": lambda: name(rng) + rng.choice(["", " Ltd", " Group", " & Sons"]),
        "name": lambda: person(rng),
        "ver": lambda: f"{rng.randint(1, 9)}.{rng.randint(0, 9)}",
        "err": lambda: f"{rng.choice('EFH')}{rng.randint(1, 99)}",
    }
    kind = kind if kind in made else kind.rstrip("2") if kind.endswith("2") else kind
    return made[kind]() if kind in made else rng.choice(WORDS[kind])


def fill(texts: Sequence[str], values: dict[str, str], rng: random.Random) -> list[str]:
    """Replace slots; one slot has one value across `texts`."""

    def put(m: re.Match[str]) -> str:
        if m[1] not in values:
            values[m[1]] = slot(m[1], rng)
        return values[m[1]]

    done = [re.sub(r"\{(\w+)\}", put, t) for t in texts]
    return [t[:1].upper() + t[1:] for t in done]


@cache
def book() -> tuple[tuple[tuple[str, ...], tuple[str, ...], str, tuple[tuple[str, ...], ...]], ...]:
    """`base_facts.txt` as (headings, documents, entity kind, lines); a line: (statements, questions)."""
    out: list[tuple[tuple[str, ...], tuple[str, ...], str, list[tuple[str, ...]]]] = []
    for line in Path(__file__).with_name("base_facts.txt").read_text("utf-8").splitlines():
        parts = [p.strip() for p in line.lstrip("#").split("|")]
        if line.startswith("## "):
            out.append((tuple(parts[0].split(" ~ ")), tuple(parts[1].split(" ~ ")), parts[2], []))
        elif not line.startswith("#"):
            out[-1][3].append(tuple(parts))
    return tuple((h, d, e, tuple(lines)) for h, d, e, lines in out)


def held_out(key: str) -> bool:
    """Whether a fact's template belongs to the held-out set (about one in ten)."""
    return crc32(key.encode()) % 10 == 3


def section(rng: random.Random, heldout: bool = False, pick: int | None = None, about: str = "") -> Section:
    """A section of facts from the book; held-out templates only when `heldout`, never otherwise."""
    headings, docs, kind, lines = book()[rng.randrange(len(book())) if pick is None else pick]
    ent = about or (entity(kind, rng) if kind else "")
    facts = []
    for statements, questions in rng.sample(lines, min(len(lines), rng.randint(2, 7))):
        if held_out(statements) and not heldout:
            continue
        made = fill([rng.choice(statements.split(" ~ ")), *questions.split(" ~ ")], {"e": ent}, rng)
        facts.append(Fact(statements, made[0], tuple(made[1:]), bool(kind)))
    if not facts:
        return section(rng, heldout, pick, about)
    rng.shuffle(facts)
    head = fill([rng.choice(headings)], {"e": ent}, rng)[0]
    top = rng.choice(docs)
    return Section(rng.choice([f"{top} > {head}", f"{top} > {head}", head]), tuple(facts))


def contacts(rng: random.Random) -> Section:
    """Who is responsible for what, as a table or as sentences."""
    facts, style = [], rng.randrange(4)
    for field in rng.sample(WORDS["field"], rng.randint(3, 7)):
        who, ext, mail = person(rng), slot("ext", rng), slot("email", rng)
        unit = (
            f"Area: {field}; Contact: {who}; Phone: {ext}; Email: {mail}.",
            f"{field.capitalize()}: {who}, extension {ext}",
            f"{who} is responsible for {field} and can be reached at {ext}.",
            f"Name: {who}; Department: {field}; Extension: {ext}.",
        )[style]
        plain = field.removeprefix("the ")
        ask = [
            f"Who is responsible for {field}?",
            f"Who do I contact about {field}?",
            f"Whom can I ask about {plain}?",
            f"Who handles {field}?",
            f"What is the phone number of {who}?",
            f"How do I reach {who}?",
            f"Which area does {who} work in?",
            f"Who is in charge of {field}?",
        ]
        facts.append(Fact(f"contact {field}", unit, tuple(ask), True))
    return Section(
        rng.choice(["Contacts", "Who does what > Contacts", "Telephone list", "Staff directory", "Team"]),
        tuple(facts),
    )


def table(rng: random.Random) -> Section:
    """Rows as `Key: value; Key: value.`; a column of the list is `key:slot:unit`."""
    head, fields, *questions = rng.choice(WORDS["tables"]).split(" ^ ")
    columns = fields.split(";")
    kind = {"Plan": "plan", "Branch": "town", "Product": "product", "Machine": "product"}.get(
        columns[0], "town"
    )
    facts = []
    for row in dict.fromkeys(entity(kind, rng) for _ in range(rng.randint(2, 7))):
        cells = [c.split(":") for c in columns[1:]]
        unit = "; ".join([f"{columns[0]}: {row}", *(f"{c[0]}: {slot(c[1], rng)}{c[2]}" for c in cells)])
        asks = tuple(q.replace("{0}", row) for qs in questions for q in qs.split(" ~ "))
        facts.append(Fact(f"{head} {row}", unit + rng.choice([".", ".", ""]), asks, True))
    return Section(
        rng.choice([head, f"{head} > {rng.randint(2023, 2026)}", f"{name(rng)} > {head}"]), tuple(facts)
    )


def glossary(rng: random.Random) -> Section:
    """Abbreviations and invented terms."""
    facts = []
    for term in rng.sample(WORDS["terms"], rng.randint(1, 4)):
        short = "".join(w[0] for w in term.split() if w[0].isupper())
        unit = rng.choice(
            [
                f"{short}: {term}.",
                f"{short} stands for {term.lower()}.",
                f"{short} - {term}",
                f"Term: {short}; Meaning: {term.lower()}.",
            ]
        )
        facts.append(
            Fact(
                f"term {short}",
                unit,
                (
                    f"What does {short} stand for?",
                    f"What is {short}?",
                    f"What does {short} mean?",
                    f"what is the meaning of {short}",
                ),
                True,
            )
        )
    for sense in rng.sample(WORDS["senses"], rng.randint(1, 4)):
        term = rng.choice(
            [
                f"{rng.choice(WORDS['colour'])} {rng.choice(WORDS['paper'])}",
                name(rng, "ing|age|er|it").lower(),
            ]
        )
        unit = fill(
            [sense.replace("{t}", term).replace("{p}", "warehouse").replace("{f}", "sales")], {}, rng
        )[0]
        facts.append(
            Fact(
                f"term {term}",
                unit,
                (
                    f"What is a {term}?",
                    f"What does {term} mean?",
                    f"What do we call {term}?",
                    f"Explain {term}.",
                    f"Define {term}",
                ),
                True,
            )
        )
    rng.shuffle(facts)
    return Section(
        rng.choice(["Glossary", "Terms and abbreviations", "Handbook > Glossary", "Definitions"]),
        tuple(facts),
    )


def any_section(rng: random.Random, heldout: bool = False) -> Section:
    """A section of any kind."""
    dice = rng.random()
    if dice < 0.72:
        return section(rng, heldout)
    return contacts(rng) if dice < 0.8 else table(rng) if dice < 0.92 else glossary(rng)


def exercise(rng: random.Random, size: int, heldout: bool = False) -> Exercise:
    """One exercise of about `size` units. With `heldout`, the asked fact comes from a held-out template."""
    while True:
        home = any_section(rng, heldout)
        options = [f for f in home.facts if held_out(f.key) == heldout]
        if options:
            break
    fact = rng.choice(options)
    sections = [home]
    if fact.named and rng.random() < 0.5 and (twin := _twin(home, fact, rng)):
        sections.append(twin)
    while sum(len(s.facts) for s in sections) < size:
        sections.append(any_section(rng, heldout))
    question, answers = rng.choice(fact.questions), [fact]
    if (
        rng.random() < 0.03
        and (more := [f for f in options if f is not fact and not f.named])
        and not fact.named
    ):
        answers.append(rng.choice(more))
        second = rng.choice(answers[1].questions)
        question = question.rstrip("?.") + " and " + second[:1].lower() + second[1:]
    refuse = rng.random() < 0.17
    return _assemble(sections, question, answers, refuse, size, rng)


def _twin(home: Section, fact: Fact, rng: random.Random) -> Section | None:
    """The same kind of section about another entity: only the heading or the name tells them apart."""
    for i, (_, _, kind, lines) in enumerate(book()):
        if kind and any(statements == fact.key for statements, _ in lines):
            return section(rng, True, pick=i)
    return None


def _assemble(
    sections: list[Section], question: str, answers: list[Fact], refuse: bool, size: int, rng: random.Random
) -> Exercise:
    """Number the facts; drop rival units with the same key, and the answer itself for a refusal."""
    rng.shuffle(sections)
    named, keys = answers[0].named, {a.key for a in answers}
    passages, gold, n = [], [], 0
    for s in sections:
        units: list[str] = []
        for f in s.facts:
            wanted = any(f is a for a in answers)
            rival = not wanted and f.key in keys and not named
            if rival or (wanted and refuse) or (n >= size and not wanted) or n >= 38:
                continue
            units.append(f.unit)
            n += 1
            if wanted:
                gold.append(n)
        if units:
            passages.append(Passage(s.heading, tuple(units)))
    question = question.lower() if rng.random() < 0.12 else question
    question = question.rstrip("?") if rng.random() < 0.08 else question
    return Exercise(question, tuple(passages), tuple(sorted(gold)), "business" if gold else "business-none")


def greeting(rng: random.Random) -> Exercise:
    """Small talk without passages."""
    return Exercise(rng.choice(WORDS["greeting"]), (), (), "greeting")
