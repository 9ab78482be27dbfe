"""Dataset rows as the strings a trainer reads: rendered with the chat template exactly as they are served."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from core.errors import TrainingError
from core.files import read_jsonl
from finetune.plan import TrainingPlan


def prepare_rows(plan: TrainingPlan, tokenizer: Any) -> tuple[list[dict[str, str]], dict[str, int]]:
    """Render a stage's rows, and drop what cannot be trained on.

    SFT and GRPO rows hold `messages` (the last one is the answer), DPO rows `prompt`, `chosen` and
    `rejected`. Returns the rows as strings and how many were dropped for which reason: a truncated answer
    would teach to stop midway, and text with the template's control tokens would be read as turns of the
    conversation.
    """
    kept: list[dict[str, str]] = []
    dropped = {"too long": 0, "control tokens": 0}
    for number, row in enumerate(read_jsonl(Path(plan.rows)), 1):
        try:
            prompt, answers = _parts(plan.method, row)
            contents = "".join([*(message["content"] for message in prompt), *answers.values()])
        except (KeyError, TypeError, IndexError):
            raise TrainingError(
                f"{plan.rows}:{number} is not a row for {plan.method}.", "Build it again."
            ) from None
        text = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)
        longest = text + max(answers.values(), key=len)
        if any(token in contents for token in tokenizer.all_special_tokens):
            dropped["control tokens"] += 1
        elif len(tokenizer(longest)["input_ids"]) >= plan.max_length:
            dropped["too long"] += 1
        else:
            kept.append(
                {"prompt": _without_bos(text, tokenizer), "question": prompt[-1]["content"], **answers}
            )
    if not kept:
        raise TrainingError(f"No row of {plan.rows} can be trained on ({dropped}).", "Collect more votes.")
    return kept, dropped


def _parts(method: str, row: dict[str, Any]) -> tuple[list[dict[str, str]], dict[str, str]]:
    if method == "dpo":
        return row["prompt"], {key: _text(row[key]) for key in ("chosen", "rejected")}
    turns = row["messages"] if "messages" in row else [*row["prompt"], *row["completion"]]
    return turns[:-1], {"completion" if method == "sft" else "reference": _text(turns[-1:])}


def _text(answer: Any) -> str:
    return answer if isinstance(answer, str) else str(answer[-1]["content"])


def _without_bos(text: str, tokenizer: Any) -> str:
    """Drop a leading BOS that the tokenizer will add by itself."""
    bos = tokenizer.bos_token
    adds = bos and tokenizer("x")["input_ids"][:1] == [tokenizer.bos_token_id]
    return text.removeprefix(bos) if adds else text
