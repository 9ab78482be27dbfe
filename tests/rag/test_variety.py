from __future__ import annotations

from collections.abc import Iterator

import pytest

from core.types import Passage
from rag.variety import choose, fair

RULE = (
    "Members may borrow tools of the workshop for a weekend against a deposit of 40 EUR, which is paid back"
    " when the tools come back clean and complete on Monday before noon. Power tools are handed out after an"
    " introduction."
)


def passage(number: int, text: str, document: str = "", heading: str = "Tools") -> Passage:
    return Passage(number, document or str(number), "Title", heading, None, 0, len(text), text)


def shown(*passages: Passage, k: int = 8) -> list[int]:
    return [found.chunk_id for found in choose(passages, k).chosen]


def test_the_same_words_and_a_part_of_them_count_once() -> None:
    part = RULE.split(". ")[0] + "."
    assert shown(passage(1, RULE), passage(2, RULE.upper(), heading="Other"), passage(3, part)) == [1]
    # the part first: the whole says more
    assert shown(passage(3, part), passage(1, RULE)) == [3, 1]


@pytest.mark.parametrize(
    "changed",
    [
        RULE.replace("40 EUR", "60 EUR"),
        RULE.replace("may borrow", "may not borrow"),
        RULE.replace("workshop", "kitchen"),
        RULE + " Bring your card.",
    ],
)
def test_what_says_something_else_stays(changed: str) -> None:
    assert shown(passage(1, RULE), passage(2, changed)) == [1, 2]
    assert 2 in shown(passage(2, changed), passage(1, RULE))


def test_a_rule_without_its_negation_is_not_a_repeat() -> None:
    # every word of the second stands in the first
    assert shown(passage(1, RULE.replace("may borrow", "may not borrow")), passage(2, RULE)) == [1, 2]


def test_a_part_under_another_heading_stays() -> None:
    part = RULE.split(". ")[0] + "."
    assert shown(passage(1, RULE), passage(2, part, heading="Trailers")) == [1, 2]


def test_a_document_over_its_share_comes_after_the_others() -> None:
    many = [passage(i, f"Rule {i} about tool{i}.", "long") for i in range(1, 7)]
    others = [passage(i, f"Something else {i}.") for i in (11, 12)]
    assert shown(*many, *others, k=4) == [1, 2, 11, 12]
    assert shown(*many[:3], others[0], k=4) == [1, 2, 11, 3]


def test_one_document_alone_fills_every_place_in_order() -> None:
    many = [passage(i, f"Rule {i} about tool{i}.", "long") for i in range(1, 10)]
    assert shown(*many, k=4) == [1, 2, 3, 4]
    assert shown(*many, k=1) == [1]


def test_no_more_is_read_than_needed() -> None:
    read = []

    def ranked() -> Iterator[Passage]:
        for i in range(100):
            read.append(i)
            yield passage(i, f"Text number {i}.", "one")

    choose(ranked(), 4)
    assert len(read) <= 9


def by_account(passage: Passage) -> str:
    return {"a": "anna", "b": "ben"}.get(passage.document_id[0], "")


def note(number: int, account: str = "a") -> Passage:
    return passage(number, f"{RULE} This is note{number}.", f"{account}{number}")


def test_what_an_account_says_again_and_again_has_a_share() -> None:
    many = [note(n) for n in range(1, 40)]
    others = [passage(n, f"Something else {n}.", "o") for n in (51, 52)]
    found = choose([*many, note(60, "b"), *others], 8, by_account)
    assert [one.chunk_id for one in found.chosen] == [1, 2, 3, 60, 51, 52]
    assert {why for _, why in found.left_out} == {"owner"}
    assert [one.chunk_id for one in choose([*many, *others], 8).chosen] == [1, 2, 3, 4, 5, 6, 7, 8]
    read = fair([*many, *others], 8, by_account)
    assert [one.chunk_id for one in read.chosen] == [1, 2, 3, 51, 52]
    assert len(read.left_out) == 36


def test_what_an_account_alone_has_is_kept_and_so_is_all_that_differs() -> None:
    many = [note(n) for n in range(1, 10)]
    assert [one.chunk_id for one in choose(many, 8, by_account).chosen] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [one.chunk_id for one in fair(many, 8, by_account).chosen] == [1, 2, 3, 4, 5, 6, 7, 8]
    different = [passage(n, f"Rule {n} about tool{n} of shed{n}.", f"a{n}") for n in range(1, 10)]
    other = passage(20, "Something else.", "o")
    assert [one.chunk_id for one in choose([*different, other], 8, by_account).chosen] == list(range(1, 9))
    assert [one.chunk_id for one in fair([*different, other], 8, by_account).chosen] == list(range(1, 9))
