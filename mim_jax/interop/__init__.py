"""Weights in from public checkpoints, and out to them; one layout a file under `layouts/`."""

from mim_jax.interop.exporting import export_weights as export_weights
from mim_jax.interop.importing import import_weights as import_weights
from mim_jax.interop.importing import import_with_report as import_with_report
from mim_jax.interop.report import Report as Report
from mim_jax.interop.report import WeightsWarning as WeightsWarning
