"""A training run on the page: live progress with the loss curve, and afterwards the judge's report."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import streamlit as st

from app.resources import Resources
from core.errors import UnderstudyError
from core.files import inside
from core.jobs import Job
from core.runs import Run, Runs
from evaluation.report import MEASURES
from rag.citations import safe_markdown

BADGES = {
    "promoted": (":material/trending_up:", "green"),
    "refused": (":material/block:", "orange"),
    "failed": (":material/error:", "red"),
    "cancelled": (":material/cancel:", "gray"),
    "running": (":material/hourglass_top:", "blue"),
}


@st.fragment(run_every=1.5)
def live(parts: Resources, job_id: str) -> None:
    """The run at work; the whole page is drawn again when it ends."""
    job = parts.jobs.get(job_id)
    if not job.open:
        st.rerun()
    with st.container(border=True):
        progress(job)
        running = Runs(parts.database).list("running")
        run = next((run for run in running if run.options.get("job") == job.id), None)
        if run is not None:
            curve(folder_of(parts, run))
        cancel_button(parts, job, "Cancelling. What is finished is kept.")


def cancel_button(parts: Resources, job: Job, cancelling: str) -> None:
    """Cancels an open job; `cancelling` is said instead once that was asked for."""
    if job.cancel_requested:
        st.caption(cancelling)
    else:
        st.button(
            "Cancel", icon=":material/cancel:", key=f"cancel_{job.kind}",
            on_click=parts.jobs.cancel, args=(job.id,),
        )  # fmt: skip


def progress(job: Job) -> None:
    """The bar and what is being done."""
    waiting = "Waiting for the worker" if job.status == "queued" else "Starting"
    st.progress(min(1.0, max(0.0, job.progress)), text=safe_markdown(job.message or waiting))


def curve(folder: Path) -> None:
    """Loss by step, a colour for each stage, from the run's progress file."""
    lines = read_progress(folder / "progress.jsonl")
    if not lines:
        return
    rows = [{"step": n, "loss": line["loss"], "stage": line["stage"]} for n, line in enumerate(lines, 1)]
    st.line_chart(rows, x="step", y="loss", color="stage", height=220)
    last = lines[-1]
    left = f", about {last['eta']:.0f} s left in this stage" if last.get("eta") is not None else ""
    st.caption(f"{last['stage']}: step {last['step']} of {last['steps']}{left}")


def read_progress(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a progress file that is still being written."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except OSError:
        return []
    rows = []
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue  # the last one, half written
        if isinstance(row, dict) and {"stage", "step", "steps", "loss"} <= row.keys():
            rows.append(row)
    return rows


def history(parts: Resources) -> None:
    """Earlier runs, newest first."""
    found = [run for run in Runs(parts.database).list(limit=20) if run.status != "running"]
    if not found:
        st.caption("No run has finished yet.")
        return
    st.subheader("Finished runs", anchor=False)
    for number, run in enumerate(found):
        when = datetime.fromtimestamp(run.created_at / 1000).strftime("%d %b %Y, %H:%M")
        icon, _ = BADGES[run.status]
        with st.expander(
            f"{run.status} · {when} · {run.adapter_id or run.id}", icon=icon, expanded=number == 0
        ):
            report(parts, run)


def report(parts: Resources, run: Run) -> None:
    """The gate's reason, the figures before and after, its checks, and where the run came from."""
    if run.error:
        st.warning(safe_markdown(run.error), icon=":material/error:")
    figures = run.report
    if figures.get("reason"):
        verdict = "Promoted" if figures.get("passed") else "Refused"
        st.markdown(f"**{verdict}.** {safe_markdown(str(figures['reason']))}")
    measures = [
        name for name in MEASURES if name in figures.get("before", {}) and name in figures.get("after", {})
    ]
    if measures:
        st.table([compared(figures, name) for name in measures], hide_index=True)
        if figures.get("left_out"):
            st.caption(safe_markdown(str(figures["left_out"])))
        for check in figures.get("checks", []):
            mark = ":green[:material/check:]" if check["passed"] else ":red[:material/close:]"
            st.caption(f"{mark} {safe_markdown(check['sentence'])}")
    lineage = {
        "Adapter": run.adapter_id,
        "Data set": run.dataset_version,
        "Stages": ", ".join(run.options.get("methods", [])),
        "Took": f"{(run.updated_at - run.created_at) / 60_000:.1f} min",
    }
    st.caption(" · ".join(f"{name}: {safe_markdown(str(value))}" for name, value in lineage.items() if value))
    path = folder_of(parts, run) / "report.md"
    if path.exists():
        st.download_button(
            "Download the report", path.read_bytes(), f"report-{run.id}.md", "text/markdown",
            key=f"report-{run.id}", icon=":material/download:", on_click="ignore",
        )  # fmt: skip


def compared(figures: dict[str, Any], name: str) -> dict[str, str]:
    """One row of the table."""
    before, after = figures["before"][name], figures["after"][name]
    return {
        f"{figures.get('cases', '?')} cases": MEASURES[name],
        "Before": f"{before:.3f}",
        "After": f"{after:.3f}",
        "Change": f"{after - before:+.3f}",
    }


def folder_of(parts: Resources, run: Run) -> Path:
    """`data/runs/<id>`."""
    try:
        return inside(parts.settings.data_dir / "runs", run.id)
    except UnderstudyError:
        return parts.settings.data_dir / "runs"
