"""Logits where they are needed: of the tokens of the answers, not of the long prompts before them.

For a small model the output layer is more than half of the work of a step. TRL's SFT leaves the prompts out
by itself; its DPO (1.14.2) does not, so its trainer gets a subclass that does. The loss is the same, to the
last bit that rounding allows; a test holds one against the other.
"""

from __future__ import annotations

from typing import Any


def of_answers_only(trainer: Any) -> Any:
    """A subclass of TRL's DPO trainer whose model computes the logits of answer tokens only."""

    class OfAnswersOnly(trainer):  # type: ignore[misc]
        def __init__(self, model: Any, **options: Any) -> None:
            self.wanted = _skip(model.get_output_embeddings())
            super().__init__(model=model, **options)

        def _compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool) -> Any:
            self.wanted["rows"] = _predicting(inputs["completion_mask"])
            return super()._compute_loss(model, inputs, return_outputs)

    return OfAnswersOnly


def _skip(head: Any) -> dict[str, Any]:
    """Make the output layer leave the logits 0 outside the mask that is put into the returned dict."""
    wanted: dict[str, Any] = {"rows": None}
    whole = head.forward

    def forward(hidden: Any) -> Any:
        rows = wanted["rows"]
        if rows is None or rows.shape != hidden.shape[:2]:
            return whole(hidden)
        some = whole(hidden[rows])
        return some.new_zeros((*hidden.shape[:2], some.shape[-1])).index_put((rows,), some)

    head.forward = forward
    return wanted


def _predicting(completion_mask: Any) -> Any:
    """Mask of the positions whose next token belongs to an answer; (batch, time) in and out."""
    following = completion_mask.bool().roll(-1, dims=1)
    following[:, -1] = False
    return following
