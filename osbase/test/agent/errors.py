# SPDX-License-Identifier: Apache-2.0
"""What the host's end raises; one family."""


class AgentError(Exception):
    """A request that could not be carried out, or was refused by the guest."""

    def __init__(self, message: str, errno: int = 0) -> None:
        """errno: of the guest's system call, 0 when there is none."""
        super().__init__(message)
        self.errno = errno


class AgentRestartedError(AgentError):
    """The guest's end has restarted; what was under way is lost."""


class AgentGoneError(AgentError):
    """The pipe to the guest has ended."""


class CommandError(AgentError):
    """A command that ended with another status than 0."""
