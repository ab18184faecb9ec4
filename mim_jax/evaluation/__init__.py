"""Evaluation of representations and pictures of predictions. Adding an evaluation is adding a file under `tasks/`."""

from mim_jax.evaluation.evaluator import Evaluator as Evaluator
from mim_jax.evaluation.evaluator import default_config as default_config
from mim_jax.evaluation.task import Result as Result
from mim_jax.evaluation.task import task_names as task_names
