"""What the nodes of a Ray cluster must have in common for a run, and what is said of errors there."""

import importlib.metadata
import os
import socket
from dataclasses import dataclass
from pathlib import Path

from feature_extraction.errors import InputError, PromptmilError


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """What a node must have in common with the one where the command was typed.

    Attributes:
        folder: Where the command runs; relative paths begin there.
        must_see: Paths that must exist.
        version: Of promptmil.
    """

    folder: Path
    must_see: tuple[Path, ...]
    version: str

    def settle(self) -> str:
        """Work in the same folder; returns the name of this node.

        Raises:
            InputError: The node sees other files, or has another version.
        """
        node = node_name()
        for path in (self.folder, *self.must_see):
            try:
                path.stat()
            except OSError as error:
                raise InputError(
                    f"cluster=ray: {path} is not there on node {node} ({error.strerror}); the folder where the command "
                    "is run, slides and out must be on storage that all nodes see under the same path"
                ) from error
        version = importlib.metadata.version("promptmil")
        if version != self.version:
            raise InputError(
                f"cluster=ray: node {node} has promptmil {version}, this command is {self.version}; install the same"
            )
        os.chdir(self.folder)
        return node


def node_name() -> str:
    """This node's host name and the beginning of Ray's id of it: one host may be several nodes."""
    import ray

    return f"{socket.gethostname()}/{ray.get_runtime_context().get_node_id()[:8]}"


def plain_cause(error: Exception) -> Exception:
    """What an actor raised, as it raised it where that was meant for people; else with the actor's stack."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, PromptmilError) else error


def first_line(error: Exception) -> str:
    """The first line of Ray's long message."""
    return str(error).strip().splitlines()[0]
