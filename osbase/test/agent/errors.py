# SPDX-License-Identifier: Apache-2.0
"""The errors of the host's end: one family."""


class AgentError(Exception):
    """A request failed, or the guest refused it."""

    def __init__(self, message: str, errno: int = 0) -> None:
        """errno: of the guest's system call, 0 when there is none."""
        super().__init__(message)
        self.errno = errno


class AgentRestartedError(AgentError):
    """The guest's end has restarted; requests under way are lost."""


class AgentGoneError(AgentError):
    """The pipe to the guest has ended."""


class CommandError(AgentError):
    """A command ended with a status other than 0."""
