"""Errors that a user can mend: each ends the program in one line and with its own exit code.

Raise them with one complete sentence: what is wrong, where (file, row, key), what was expected, the remedy.
Our own bugs are assertions and keep their traceback.
"""

from __future__ import annotations


class UserError(ValueError):
    """Base of every error that is reported without a traceback."""

    exit_code = 1


class ConfigError(UserError):
    """A key or value of the configuration is not allowed."""

    exit_code = 2


class DataError(UserError):
    """An input file is missing, damaged or contradicts another one."""

    exit_code = 3


class CheckpointError(UserError):
    """A checkpoint is missing, torn, or of another model."""

    exit_code = 4


class JobError(UserError):
    """The processes of a job cannot start or stay together."""

    exit_code = 5


class DivergedError(UserError):
    """The loss is no longer finite."""

    exit_code = 6


class Terminated(UserError):
    """The job was asked to end by SIGTERM, and has saved its state."""

    exit_code = 143  # 128 + SIGTERM, as shells report it
