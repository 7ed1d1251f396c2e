"""Generated models whose first block is one of these."""

from .check import generated
from .describe import Deep, Experts, Gate

test_deep = generated(0, Deep)
test_experts = generated(1, Experts)
test_gate = generated(2, Gate)
