"""Generated models whose first block is one of these."""

from .check import generated
from .describe import Attention, Excited, Unit

test_unit = generated(9, Unit)
test_attention = generated(10, Attention)
test_excited = generated(11, Excited)
