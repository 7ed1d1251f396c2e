"""Generated models whose first block is one of these."""

from .check import generated
from .describe import Cross, Towers, Wide

test_towers = generated(3, Towers)
test_wide = generated(4, Wide)
test_cross = generated(5, Cross)
