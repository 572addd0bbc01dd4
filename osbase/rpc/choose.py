# SPDX-License-Identifier: Apache-2.0
"""Choose the server: ours, or grpc.server behind the same interface.

Both pass the same suite of tests. Ours is faster, but uses private parts of
grpcio; so it is chosen only if those are unchanged.
"""

import logging
from typing import TYPE_CHECKING

from osbase.rpc import private

if TYPE_CHECKING:
    from osbase.rpc.server import Server
    from osbase.rpc.stock import StockServer

log = logging.getLogger(__name__)

AUTO, QUEUES, STOCK = "auto", "queues", "stock"
NAMES = (AUTO, QUEUES, STOCK)


def server_class(name: str = AUTO) -> type[Server | StockServer]:
    """Return the class. queues: ours, on completion queues. stock: grpc.server.
    auto: ours; if grpcio has changed, the other, with a warning that has the
    reason.

    Raises RuntimeError, with the reason, when `queues` is not usable.
    """
    if name not in NAMES:
        raise ValueError(f"server {name!r}: must be one of {', '.join(NAMES)}")
    changed = private.problems() if name != STOCK else []
    if changed and name == QUEUES:
        raise RuntimeError(private.explain(changed))
    if changed:
        log.warning("using grpc.server, which is slower: %s", private.explain(changed))
    if changed or name == STOCK:
        from osbase.rpc.stock import StockServer

        return StockServer
    from osbase.rpc.server import Server

    return Server
