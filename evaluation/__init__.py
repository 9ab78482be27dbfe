"""The judge: frozen cases, scores, the gate and its report. What it judges never imports it."""
