# SPDX-License-Identifier: Apache-2.0
"""grpcio's private parts are as the server uses them; changes are found."""

import ast
import logging
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from grpc._cython import cygrpc

from osbase.rpc import private
from osbase.rpc.choose import AUTO, QUEUES, STOCK, server_class
from osbase.rpc.server import Server
from osbase.rpc.stock import StockServer


def test_nothing_has_changed() -> None:
    """If this fails after an update of grpcio, see how grpc/_server.py uses
    each of these now, and change osbase.rpc. Until then `--rpc-server auto`
    chooses grpc.server.
    """
    changed = private.problems()
    assert not changed, private.explain(changed)


def test_all_that_is_used_is_looked_at() -> None:
    used = {
        node.attr
        for path in Path(private.__file__).parent.glob("*.py")
        if not path.name.endswith("_test.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "cygrpc"
    }
    looked_at = (*private.METHODS, *private.ATTRIBUTES, *private.MADE)
    assert {"Server", "CompletionQueue"} < used
    assert used <= {name.partition(".")[0] for name in looked_at}


class Changed(ModuleType):
    """The module with some names replaced."""

    def __init__(self, **other: Any) -> None:
        super().__init__("changed")
        self.__dict__.update({**vars(cygrpc), **other})


class Other:
    """A class with some methods replaced."""

    def __init__(self, real: Any, **methods: Any) -> None:
        self._real = real
        self.__dict__.update(methods)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def __call__(self, *arguments: Any) -> Any:
        return self._real(*arguments)


def poll(self: Any, until: float) -> None:
    """Has another name of the parameter."""


def destroy(self: Any, how: int) -> None:
    """Has one more parameter."""


@pytest.mark.parametrize(
    ("module", "line"),
    [
        (Changed(Server=None), "there is no Server.start"),
        (Changed(Server=Other(cygrpc.Server, start=None)), "there is no Server.start"),
        (
            Changed(CompletionQueue=Other(cygrpc.CompletionQueue, poll=poll)),
            "CompletionQueue.poll takes (until), not (deadline)",
        ),
        (
            Changed(Server=Other(cygrpc.Server, destroy=destroy)),
            "Server.destroy takes (how), not ()",
        ),
        (Changed(Server=lambda arguments: None), "a Server fails: TypeError"),
        (Changed(CompletionType=SimpleNamespace()), "there is no CompletionType.queue_timeout"),
        (
            Changed(SendMessageOperation=cygrpc.ReceiveMessageOperation),
            "SendMessageOperation(b'', 0) fails: TypeError",
        ),
    ],
)
def test_each_change_is_named(
    module: ModuleType, line: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    changed = private.problems(module)
    assert any(one.startswith(line) for one in changed), changed
    monkeypatch.setattr(private, "problems", lambda: changed)
    with caplog.at_level(logging.WARNING):
        assert server_class(AUTO) is StockServer
    assert line in caplog.text
    with pytest.raises(RuntimeError, match=r"is not as osbase\.rpc\.server uses it") as caught:
        server_class(QUEUES)
    assert line in str(caught.value)


def test_choice() -> None:
    assert server_class() is server_class(AUTO) is server_class(QUEUES) is Server
    assert server_class(STOCK) is StockServer
    with pytest.raises(ValueError, match="must be one of auto, queues, stock"):
        server_class("other")
