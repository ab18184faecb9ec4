"""Weights in from public checkpoints, and out to them; one layout a file under `layouts/`."""


def import_weights(objective, source, layout):
    raise NotImplementedError


def export_weights(objective, variables, path, layout):
    raise NotImplementedError
