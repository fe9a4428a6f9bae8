"""Exact load balancing for expert-parallel Mixture-of-Experts models.

    from lplb import Planner                      LPLB's interface (docs/from-lplb.md)
    from lplb.eplb import rebalance_experts       EPLB's interface (docs/from-eplb.md)

The package carries the name of DeepSeek's LPLB, whose interface it has: the two cannot be installed
together.
"""

from ._library import Error, InputError, __version__
from .comm import Communicator
from .placement import Move, Placement, place
from .plan import Plan, solve
from .planner import Planner, Status

__all__ = ["Communicator", "Error", "InputError", "Move", "Placement", "Plan", "Planner", "Status",
           "__version__", "place", "solve"]
