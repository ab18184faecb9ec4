"""One of several processes that evaluate together: `python -m tests.evaluation.process PORT COUNT INDEX OUT_DIR`."""

from __future__ import annotations

import json
import pathlib
import sys

import jax

TASKS = ("knn", "linear", "statistics", "reconstruct")
SETTINGS = {
    "evaluation__batch_size": 24,  # 100 images: four full batches and one that is mostly padding
    "evaluation__knn__k": (1, 5),
    "evaluation__linear__optimizer": "adamw",
    "evaluation__linear__lrs": (0.01, 0.1),
    "evaluation__linear__lr_reference_batch": None,
    "evaluation__linear__epochs": 5,
    "evaluation__linear__batch_size": 16,
}


def main(port: str, count: str, index: str, out_dir: str) -> None:
    """Evaluates a tiny MAE on the devices of all processes; writes numbers to `OUT_DIR/INDEX.json`."""
    jax.distributed.initialize(f"localhost:{port}", int(count), int(index), initialization_timeout=60)
    # After jax.distributed: these touch devices.
    from mim_jax.evaluation.placement import Placement
    from tests.evaluation.conftest import make_subject
    from tests.evaluation.meshes import mesh_of

    subject = make_subject("mae")
    variables = Placement(mesh_of(jax.device_count())).replicate(jax.device_get(subject.variables))
    evaluator = subject.evaluator(jax.device_count(), **SETTINGS)
    folder = pathlib.Path(out_dir)
    numbers = evaluator.run(variables, TASKS, step=0, out_dir=folder / "pictures")
    (folder / f"{index}.json").write_text(json.dumps(numbers))


if __name__ == "__main__":
    main(*sys.argv[1:])
