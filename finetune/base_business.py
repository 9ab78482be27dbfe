"""Invented documents of an organisation with natural questions, so the model must read, not remember.

`base_facts.txt` holds the sentences and their questions with slots; tables, contact lists and glossaries are
built here. An organisation is a shelf of about ten sections; no two hold the same fact unless heading or
question names the entity. Questions to facts that its sections could hold but do not are near misses: the
right answer is a refusal.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from zlib import crc32

from finetune.base_data import WORDS
from finetune.base_shelf import Asked


@dataclass(frozen=True)
class Fact:
    """A unit with questions it answers. `key` is its subject, `named`: the questions name the entity."""

    key: str
    unit: str
    questions: tuple[str, ...]
    named: bool = False


@dataclass(frozen=True)
class Section:
    """A heading with facts; `absent` are facts of its kind that it does not hold."""

    heading: str
    facts: tuple[Fact, ...]
    absent: tuple[Fact, ...] = ()


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


def section(rng: random.Random, heldout: bool = False, pick: int | None = None) -> Section:
    """A section of facts from the book; held-out templates only when `heldout`, never otherwise."""
    headings, docs, kind, lines = book()[rng.randrange(len(book())) if pick is None else pick]
    ent = entity(kind, rng) if kind else ""
    usable = [line for line in lines if heldout or not held_out(line[0])]
    facts = []
    for statements, questions in rng.sample(usable, len(usable)):
        made = fill([rng.choice(statements.split(" ~ ")), *questions.split(" ~ ")], {"e": ent}, rng)
        facts.append(Fact(statements, made[0], tuple(made[1:]), bool(kind)))
    size = rng.randint(2, 7)
    head = fill([rng.choice(headings)], {"e": ent}, rng)[0]
    top = rng.choice(docs)
    heading = rng.choice([f"{top} > {head}", f"{top} > {head}", head])
    return Section(heading, tuple(facts[:size]), tuple(facts[size:]))


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


def organisation(rng: random.Random, heldout: bool = False) -> list[Section]:
    """The papers of one organisation: about ten sections, among them twins about two entities."""
    wanted = rng.randint(7, 12)
    sections: list[Section] = []
    for pick in rng.sample(range(len(book())), len(book())):
        entity_kind = book()[pick][2]
        for _ in range(rng.choice([1, 2, 2, 3]) if entity_kind else 1):
            sections.append(section(rng, heldout, pick))
        if len(sections) >= wanted:
            break
    for make, share in ((contacts, 0.4), (table, 0.6), (table, 0.3), (glossary, 0.5)):
        if rng.random() < share:
            sections.append(make(rng))
    return [part for part in sections if part.facts]


def questions(sections: Sequence[Section], rng: random.Random, heldout: bool = False) -> Iterator[Asked]:
    """Endless questions to an organisation's papers, most to facts that they hold.

    With `heldout` only held-out templates are asked.
    """
    present = [(home, fact) for home, part in enumerate(sections) for fact in part.facts]
    absent = [(home, fact) for home, part in enumerate(sections) for fact in part.absent]
    if heldout:
        present = [pair for pair in present if held_out(pair[1].key)]
        absent = [pair for pair in absent if held_out(pair[1].key)]
    while present:
        missing = bool(absent) and rng.random() < 0.15
        home, fact = rng.choice(absent if missing else present)
        question = rng.choice(fact.questions)
        gold: tuple[str, ...] = () if missing else (fact.unit,)
        if not missing and not fact.named and rng.random() < 0.03:
            others = [f for f in sections[home].facts if f is not fact and not f.named]
            if others:
                other = rng.choice(others)
                second = rng.choice(other.questions)
                question = question.rstrip("?.") + " and " + second[:1].lower() + second[1:]
                gold = (fact.unit, other.unit)
        question = question.lower() if rng.random() < 0.12 else question
        question = question.rstrip("?") if rng.random() < 0.08 else question
        yield Asked(question, home, gold, "office")
