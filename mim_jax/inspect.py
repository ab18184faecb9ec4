"""Lists the checkpoints of a run, reads every array of each, and says where a resume would start.

    python -m mim_jax.inspect RUN

Exit codes: 0 there is a sound checkpoint, 1 there is none, 2 RUN is no run. Nothing is changed: damaged checkpoints are
set aside only by the run itself, when it resumes.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import sys
from collections.abc import Callable, Iterable, Sequence

# A checkpoint is read on the host, whatever accelerator may be free or busy.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import tqdm

from mim_jax.cli import EXIT_USAGE, show_own_logs_only
from mim_jax.errors import CheckpointError
from mim_jax.training.checkpoint import Checkpointer

EXIT_UNSOUND = 1


@dataclasses.dataclass(frozen=True)
class Finding:
    """What one checkpoint holds."""

    step: int
    num_bytes: int  # on disk
    num_arrays: int = 0
    saved: str = ""  # when, in UTC
    problem: str | None = None  # None: sound


def inspect_run(workdir: str | pathlib.Path, progress: Callable[[Iterable], Iterable] = iter) -> list[Finding]:
    """A finding for every checkpoint of a run, ascending.

    Raises:
      CheckpointError: the directory holds no checkpoints.
    """
    checkpointer = Checkpointer(workdir, read_only=True)
    try:
        return [_inspect(checkpointer, step) for step in progress(checkpointer.steps())]
    finally:
        checkpointer.close()


def _inspect(checkpointer: Checkpointer, step: int) -> Finding:
    files = (checkpointer.directory / str(step)).rglob("*")
    num_bytes = sum(file.stat().st_size for file in files if file.is_file())
    try:
        saved = checkpointer.meta(step).get("time", "")
        arrays = checkpointer.arrays(step)
    except CheckpointError as error:
        return Finding(step, num_bytes, problem=str(error))
    return Finding(step, num_bytes, len(jax.tree.leaves(arrays)), saved)


def table(findings: Sequence[Finding]) -> str:
    """The findings as aligned lines of text."""
    sound = [finding.step for finding in findings if finding.problem is None]
    rows = [("step", "saved (UTC)", "size", "arrays", "state")]
    for finding in findings:
        state = finding.problem or ("sound, a resume starts here" if finding.step == sound[-1] else "sound")
        saved = finding.saved.removesuffix("+00:00").replace("T", " ")
        rows.append((str(finding.step), saved, _size(finding.num_bytes), str(finding.num_arrays or ""), state))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = ("  ".join([*map(str.rjust, row[:4], widths), row[4]]) for row in rows)
    return "\n".join(lines)


def _size(num_bytes: int) -> str:
    size, units = float(num_bytes), iter(("B", "kB", "MB", "GB"))
    unit = next(units)
    while size >= 1000 and (larger := next(units, None)):
        size, unit = size / 1000, larger
    return f"{size:.3g} {unit}"


def main(argv: Sequence[str]) -> int:
    """Prints the table of the run `argv[1]`; returns the exit code."""
    show_own_logs_only()
    if len(argv) != 2 or argv[1].startswith("-"):
        print(__doc__.strip(), file=sys.stderr)
        return EXIT_USAGE
    workdir = pathlib.Path(argv[1])
    try:
        findings = inspect_run(workdir, lambda steps: tqdm.tqdm(steps, "reading", leave=False, disable=None))
    except CheckpointError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USAGE
    print(table(findings) if findings else f"{workdir} has no checkpoint.")
    damaged = sorted(path.name for path in (workdir / "damaged").glob("*"))
    if damaged:
        print(f"set aside as damaged: {', '.join(damaged)} (under {workdir / 'damaged'})")
    if not any(finding.problem is None for finding in findings):
        print("A resume would find nothing to start from.", file=sys.stderr)
        return EXIT_UNSOUND
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
