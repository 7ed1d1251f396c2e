"""Tables larger than a machine: a captured program whose lookups are answered by several ranks, over torch.distributed (gloo).

`plan_shards` says which rank holds which rows, and prints what that costs; `shard` gives a callable that is used like the model on every rank.
"""

from __future__ import annotations

from .exchange import Traffic
from .plan import Piece, Placed, ShardPlan
from .planning import plan_shards
from .sharded import Sharded, shard

__all__ = ["Piece", "Placed", "ShardPlan", "Sharded", "Traffic", "plan_shards", "shard"]
