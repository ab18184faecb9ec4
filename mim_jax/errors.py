"""Exceptions whose one-sentence messages name the offending key or file and the remedy."""


class ConfigError(ValueError):
    """A config value is unknown, of the wrong type, out of range or inconsistent with another one."""


class DataError(ValueError):
    """A data set is missing, empty, unreadable or does not have what the config asks of it."""


class WeightsError(ValueError):
    """A weights file or checkpoint does not match what it is loaded into."""


class CheckpointError(RuntimeError):
    """A checkpoint is missing, damaged, or could not be written."""


class TrainingError(RuntimeError):
    """Training cannot go on, for example because the loss is not finite."""
