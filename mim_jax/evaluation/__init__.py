"""Evaluation of representations and pictures of predictions."""

from ml_collections import ConfigDict


def default_config():
    return ConfigDict()
