"""The whole loop on one page: votes become a dataset, the dataset an adapter, and the gate decides its fate.

    dataset → train → export → ask the adapter on stage and the candidate the same questions → gate → stage

`understudy retrain` runs it here, a job of kind `retrain` runs it under the worker. Each step leaves a card
in `data/runs/<id>/<step>/` when it is done and is skipped when the card is there, so a run that was killed or
cancelled goes on where it was. Every adapter is registered; only one that passes the gate takes the stage,
and only if nobody promoted another one meanwhile.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from core.adapters import AdapterRegistry
from core.catalog import CatalogModel, resolve
from core.db import Database
from core.errors import ConflictError, TrainingError, run_main
from core.files import read_json, sha256_of, write_json
from core.runs import Run, Runs
from core.settings import Settings, load_settings, quiet_environment
from evaluation import report
from evaluation.exam import Exam, citer, engine, golden
from evaluation.gate import judge
from evaluation.run import Result, evaluate
from feedback.dataset import FEWEST, PREFERENCE, SFT, Dataset, freeze, load, split
from finetune.export import Lineage, export
from finetune.from_gguf import prepare
from finetune.orders import Tell, outcome, run_here, run_job
from finetune.plan import TrainingPlan, check_memory, choose_plan, describe, trainable_folder
from finetune.telling import Terminal
from finetune.train import CARD, stage_name
from finetune.training import run_training

ABOUT = (
    "Freeze votes and approved corrections into a dataset, train an adapter on it and judge it against the"
    " one on stage. A better one takes the stage at once; the report says why or why not. A run that was"
    " stopped goes on where it was."
)
ROWS = {"sft": SFT, "dpo": PREFERENCE, "grpo": SFT}


@dataclass(frozen=True)
class Retraining:
    """One run of the loop. `folder` is `data/runs/<id>`."""

    settings: Settings
    database: Database
    run: Run
    model: CatalogModel
    gguf: Path
    tell: Tell

    @property
    def folder(self) -> Path:
        """Where the run keeps its files."""
        return self.settings.data_dir / "runs" / self.run.id

    @property
    def registry(self) -> AdapterRegistry:
        """The adapters."""
        return AdapterRegistry(self.database, self.settings.data_dir / "adapters")

    @cached_property
    def exam(self) -> Exam:
        """What the candidate will be asked."""
        return Exam(self.settings, self.database, self.model)

    def go(self) -> Run:
        """Run every step that is not done yet; returns the finished run (promoted or refused)."""
        begun = self.step("begin", self.begin)
        if begun["base"] != self.model.id:
            raise TrainingError(
                f"The run began with the model {begun['base']}.", "Choose that one to finish it."
            )
        dataset = load(self.settings.data_dir / "datasets", self.step("dataset", self.freeze)["version"])
        prepare(self.settings, self.model, self.gguf, lambda what: self.tell(0.03, what))
        plans = self.plans(dataset)
        self.train(plans)
        candidate = self.step("export", lambda: self.export(plans, dataset, begun))["adapter"]
        gate = self.step("gate", lambda: self.judge(dataset, candidate, begun))
        return self.take_the_stage(gate["passed"], gate["reason"], candidate, begun["seq"])

    def step(self, name: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What a step's card says; the work is done, and the card written, only when there is none."""
        card = self.folder / name / CARD
        if not card.exists():
            Runs(self.database).record(self.run.id, stage=name)
            write_json(card, work())
        return dict(read_json(card))

    def begin(self) -> dict[str, Any]:
        """Pin down what the candidate will be compared with."""
        self.tell(0.01, "Looking at what is on stage")
        promotion = self.registry.on_stage(self.model.id)
        return {
            "on_stage": promotion.adapter_id if promotion else None,
            "seq": promotion.seq if promotion else 0,
            "base": self.model.id,
            "base_sha256": sha256_of(self.gguf),
        }

    def freeze(self) -> dict[str, Any]:
        """Freeze today's feedback, less the questions of the exam."""
        self.tell(0.02, "Freezing the dataset")
        questions = [row["question"] for row in golden(self.settings, self.database)]
        dataset = freeze(
            self.database, self.settings.data_dir / "datasets", cite=citer(self.model), exclude=questions,
            seed=self.settings.seed,
        )  # fmt: skip
        Runs(self.database).record(self.run.id, dataset_version=dataset.version)
        return {"version": dataset.version, **dataset.card["counts"]}

    def plans(self, dataset: Dataset) -> list[TrainingPlan]:
        """The training stages that there are rows for."""
        counts = {"sft": len(dataset.sft()), "dpo": len(dataset.preference()), "grpo": len(dataset.sft())}
        settings = replace(self.settings, four_bit=self.run.options["four_bit"])
        methods = [method for method in self.run.options["methods"] if counts[method]]
        if not methods:
            raise TrainingError(
                "There is no pair of answers to learn from yet.", "Correct some answers, or add sft."
            )
        return [
            choose_plan(settings, self.model, method, dataset.folder / ROWS[method], counts[method])
            for method in methods
        ]

    def train(self, plans: list[TrainingPlan]) -> None:
        """Train in a process of its own, which takes its memory and its crashes with it."""
        names = [stage_name(number, plan) for number, plan in enumerate(plans, 1)]
        if all((self.folder / name / CARD).exists() for name in names):
            return
        for plan in plans:
            check_memory(plan)
        Runs(self.database).record(self.run.id, stage="train")
        plan_file = self.folder / "plan.json"
        if not plan_file.exists():
            write_json(plan_file, {"stages": [plan.to_json() for plan in plans]})
        run_training(
            plan_file, self.folder, self.settings, lambda done, what: self.tell(0.05 + 0.6 * done, what)
        )

    def export(self, plans: list[TrainingPlan], dataset: Dataset, begun: dict[str, Any]) -> dict[str, Any]:
        """Make the adapter the engine can load, and register it unjudged."""
        self.tell(0.66, "Exporting the adapter")
        made = datetime.fromtimestamp(self.run.created_at / 1000, UTC)
        lineage = Lineage(
            self.run.id, dataset.version, begun["on_stage"], self.model.id, begun["base_sha256"],
            self.model.licence, [plan.to_json() for plan in plans], self.run.created_at, f"{made:%Y%m%d}",
        )  # fmt: skip
        trained = self.folder / stage_name(len(plans), plans[-1]) / "adapter"
        base = trainable_folder(self.settings, self.model)
        adapter = export(trained, base, self.registry.folder, lineage)
        self.exam.remember(self.registry.folder / adapter.id, dataset.sft())
        self.registry.register(adapter)
        Runs(self.database).record(self.run.id, adapter_id=adapter.id)
        return {"adapter": adapter.id, "sha256": adapter.sha256}

    def ask_both(
        self, dataset: Dataset, on_stage: str | None, candidate: str
    ) -> tuple[list[Result], list[Result]]:
        """Ask the adapter on stage (or the bare base) and the candidate every question of the exam."""
        self.tell(0.7, "Setting the exam")
        Runs(self.database).record(self.run.id, stage="evaluate")
        cases = self.exam.set(dataset.heldout(), self.folder / "exam")
        results = []
        with engine(self.settings) as client:
            for name, model, share in (("before", on_stage or "base", 0.72), ("after", candidate, 0.85)):

                def tell(done: int, total: int, model: str = model, share: float = share) -> None:
                    self.tell(share + 0.13 * done / total, f"Asking {model}, question {done} of {total}")

                results.append(
                    evaluate(
                        client, cases, model, folder=self.folder / name, progress=tell, show=self.exam.show
                    )
                )
        return results[0], results[1]

    def judge(self, dataset: Dataset, candidate: str, begun: dict[str, Any]) -> dict[str, Any]:
        """Ask both, and write the report and the verdict down, whatever it is."""
        before, after = self.ask_both(dataset, begun["on_stage"], candidate)
        self.tell(0.98, "Judging")
        Runs(self.database).record(self.run.id, stage="gate")
        verdict = judge(before, after)
        summary = report.summary(before, after, verdict)
        lineage = {
            "run": self.run.id, "base": self.model.id, "base sha256": begun["base_sha256"],
            "on stage": begun["on_stage"] or "base", "candidate": candidate,
            "candidate sha256": self.registry.get(candidate).sha256,
            "dataset": read_json(self.folder / "dataset" / CARD)["version"],
            "stages": ", ".join(self.run.options["methods"]),
        }  # fmt: skip
        report.write_report(self.folder / "report.md", before, after, verdict, lineage)
        self.registry.set_verdict(candidate, "passed" if verdict.passed else "refused", summary)
        Runs(self.database).record(self.run.id, report=summary)
        return {"passed": verdict.passed, "reason": verdict.reason, "table": report.table(before, after)}

    def take_the_stage(self, passed: bool, why: str, candidate: str, seq: int) -> Run:
        """Promote the candidate if it passed and the stage is as it was at the start."""
        runs = Runs(self.database)
        if not passed:
            return runs.record(self.run.id, status="refused", stage="done")
        now = self.registry.on_stage(self.model.id)
        if now is None or now.adapter_id != candidate:  # a killed run may have promoted it already
            try:
                reason = f"run {self.run.id}: {why}"
                self.registry.promote(candidate, "gate", reason, expected_seq=seq)
            except ConflictError as error:
                return runs.record(self.run.id, status="refused", stage="done", error=str(error))
        return runs.record(self.run.id, status="promoted", stage="done")


def main(argv: Sequence[str] | None = None) -> int:
    """`understudy retrain`: exits 0 when the run came to a verdict, whichever it was."""
    parser = argparse.ArgumentParser(prog="understudy retrain", description=ABOUT)
    parser.add_argument("--methods", help="training stages in order, such as sft,dpo (default: the setting)")
    parser.add_argument("--grpo", action="store_true", help="add a GRPO stage at the end")
    parser.add_argument("--four-bit", action="store_true", default=None, help="train on an NF4 base (QLoRA)")
    parser.add_argument(
        "--dry-run", action="store_true", help="show rows, plan, memory and time; change nothing"
    )
    parser.add_argument("--job", help=argparse.SUPPRESS)
    parser.add_argument("--token", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    quiet_environment()
    settings = load_settings(methods=arguments.methods, four_bit=arguments.four_bit)
    database = Database(settings.database)

    def go(run: Run, tell: Tell) -> Run:
        return Retraining(settings, database, run, *resolve(settings), tell).go()

    if arguments.job:
        return run_job(settings, database, go, arguments.job, arguments.token)
    methods = [method for method in settings.method_list if method != "grpo" or not arguments.grpo]
    methods += ["grpo"] * arguments.grpo
    if arguments.dry_run:
        return dry_run(settings, database, methods)
    run = run_here(settings, database, go, {"methods": methods, "four_bit": settings.four_bit}, Terminal())
    folder = settings.data_dir / "runs" / run.id
    print(f"\n{read_json(folder / 'gate' / CARD)['table']}\n\n{outcome(run)}")
    print(f"The report is {folder / 'report.md'}.")
    return 0


def dry_run(settings: Settings, database: Database, methods: list[str]) -> int:
    """Print what a run would train on and with, and what it would take; change nothing."""
    model, gguf = resolve(settings)
    questions = [row["question"] for row in golden(settings, database)]
    parts = split(database, citer(model), exclude=questions, seed=settings.seed)
    answers, pairs = len(parts.imitate), len(parts.prefer)
    print(f"{answers} answers to imitate, {pairs} pairs, {len(parts.heldout)} questions kept for the exam")
    if answers < FEWEST:
        print(f"A run needs {FEWEST} answers to imitate: vote, correct, and approve corrections first.")
        return 0
    prepare(settings, model, gguf, print)
    for method in methods:
        count = pairs if method == "dpo" else answers
        print(describe(choose_plan(settings, model, method, settings.data_dir, count), count))
    return 0


if __name__ == "__main__":
    run_main(main)
